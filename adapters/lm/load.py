"""Finding and loading a causal language model, by folder, GGUF file or hub id. Code that comes with a model is never
run.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from periscope.adapters.lm.families import family_of, find_fault, why_refused
from periscope.adapters.lm.files.damage import damage_of, find_damage, missing_tokenizer, only_pytorch_weights
from periscope.adapters.lm.files.find import AN_ADAPTER, find_model, is_adapter
from periscope.adapters.lm.files.gguf_file import (
    SUFFIX,
    GgufFile,
    dequantize,
    forget_file,
    gguf_arguments,
    read_gguf,
)
from periscope.adapters.lm.language_model import LanguageModel, freeze
from periscope.adapters.lm.precision import (
    DTYPES,
    choose_precision,
    quantization,
    refuse_quantized,
    silence_bitsandbytes,
    stored_precision,
    use_fp32_attention_on_cpu,
)
from periscope.errors import AdapterError
from periscope.quiet import quiet_transformers


def load_language_model(
    name: str, device: str = "cpu", precision: str = "auto", trust_remote_code: bool = False
) -> LanguageModel:
    """Load a causal language model by folder, GGUF file or hub id, frozen and in `eval()`.

    Weights are safetensors, or GGUF, which is dequantized; where a folder has neither, pytorch_model.bin, read with
    torch's weights_only loader. A family that isn't tested is checked on a few vectors first (`families.find_fault`).
    `trust_remote_code` runs the Python code of a model that brings its own, and says so.

    Raises AdapterError when the model isn't found, brings code of its own, belongs to a family that can't be driven by
    vectors, has a damaged file or a tokenizer of another model, or lacks weights.
    """
    source = find_model(name)
    if trust_remote_code:
        print(f"warning: Python code that comes with {name} is run with your rights on this machine", file=sys.stderr)
    with opened(source, trust_remote_code) as (where, gguf):
        return _load(name, where, gguf, device, precision)


def _load(name: str, where: dict[str, Any], gguf: GgufFile | None, device: str, precision: str) -> LanguageModel:
    config = read_config(where, name)
    if reason := why_refused(config, where["trust_remote_code"]):
        raise AdapterError(f"--lm {name} ({config.model_type}) can't be used: {reason}")
    family = family_of(config)
    trained_in = gguf.stored_dtype if gguf else getattr(config.get_text_config(), "dtype", None)
    stored = stored_precision(config)
    if gguf and precision in ("8bit", "4bit"):
        raise AdapterError(
            f"--precision {precision} quantizes weights in full precision, and {name} is GGUF, which is dequantized; "
            "use fp16, bf16 or fp32, or name the model it was made from"
        )
    if stored:
        if precision not in ("auto", stored):
            raise AdapterError(
                f"--lm {name} is stored in {stored}, and --precision {precision} would need the weights it was made "
                "from; name that model instead, or leave --precision out"
            )
        if stored in ("8bit", "4bit"):
            refuse_quantized(f"--lm {name} is stored in {stored}", torch.device(device))
        precision, reason = stored, "as its weights are stored"
    else:
        precision, reason = choose_precision(precision, torch.device(device), trained_in, family.overflows)
    notes = [gguf.describe(precision)] if gguf else []
    arguments: dict[str, Any] = dequantize() if gguf else {"use_safetensors": True}
    if not gguf and only_pytorch_weights(Path(where["pretrained_model_name_or_path"])):
        arguments = {"use_safetensors": False, "weights_only": True}
        notes.append("weights from pytorch_model.bin, which hold no code that is run")
    if precision in DTYPES:
        dtype = DTYPES[precision]
    else:
        dtype = DTYPES[choose_precision("auto", torch.device(device), trained_in, family.overflows)[0]]
        if not stored:
            arguments |= quantization(precision, dtype, family.unquantized)
        silence_bitsandbytes()
    tokenizer = read_tokenizer(where, gguf, name)
    use_fp32_attention_on_cpu()
    try:
        with quiet_transformers():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                **where,
                dtype=dtype,
                device_map={"": device},
                output_loading_info=True,
                **arguments,
            )
        model, loading = loaded
    except BaseException as error:
        raise _refusal(error, f"--lm {name} can't be loaded", where) from error
    if missing := sorted(loading["missing_keys"]):
        raise AdapterError(f"--lm {name} {_lacks(missing, config, type(model).__name__)}")
    if gguf:
        forget_file(model)
    _check_tokenizer(tokenizer, model, name)
    lm = freeze(name, model, tokenizer, precision, reason)
    if not 0 < lm.embedding_rms < float("inf"):
        raise AdapterError(f"--lm {name}: its word embeddings are zero or not finite; download the weights again")
    lm.note = "; ".join(filter(None, [*notes, lm.note]))
    if not family.tested:
        if fault := find_fault(model, 1e-3 if precision == "fp32" else 0.1):
            raise AdapterError(
                f"--lm {name} ({config.model_type}) can't be used: {fault}; use OPT, Llama, Qwen or Mamba"
            )
        lm.note = "; ".join(filter(None, [f"{config.model_type} isn't a tested family; it passed a trial", lm.note]))
    return lm


def _lacks(missing: list[str], config: PretrainedConfig, class_name: str) -> str:
    """What is wrong with a model that lacks weights: a file is missing, or it was saved as one that writes no words."""
    saved_as = (config.architectures or [class_name])[0]
    if saved_as != class_name:
        return (
            f"holds the weights of a {saved_as}, and {class_name} has {len(missing)} more, such as {missing[0]}: it "
            "isn't a language model that writes; use OPT, Llama, Qwen or Mamba"
        )
    return f"lacks {len(missing)} of its weights, such as {missing[0]}, and would be given random ones; fetch it again"


def load_config(source: str, name: str | None = None) -> PretrainedConfig:
    """The config of a model found by `find_model`; `name` is what the user called it.

    Raises AdapterError for a folder or repository without a config of transformers, or with code of its own.
    """
    with opened(source) as (where, _):
        return read_config(where, name or source)


def load_tokenizer(source: str, name: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model found by `find_model`; `name` is what the user called it.

    Raises AdapterError when it can't be loaded.
    """
    with opened(source) as (where, gguf):
        return read_tokenizer(where, gguf, name or source)


@contextmanager
def opened(source: str, trust_remote_code: bool = False) -> Iterator[tuple[dict[str, Any], GgufFile | None]]:
    """Arguments of `from_pretrained` that name a model, while the context lasts, and its GGUF file, if it is one."""
    # Left unset, transformers asks on standard input whether to run a stranger's code, and takes `y` for an answer.
    code = {"trust_remote_code": trust_remote_code}
    if not source.lower().endswith(SUFFIX):
        yield {"pretrained_model_name_or_path": source, **code}, None
        return
    gguf = read_gguf(Path(source))
    with gguf_arguments(gguf) as where:
        yield {**where, **code}, gguf


def read_config(where: dict[str, Any], name: str) -> PretrainedConfig:
    """As `load_config`, for arguments that `opened` gives."""
    try:
        return AutoConfig.from_pretrained(**where)
    except BaseException as error:
        if is_adapter(where["pretrained_model_name_or_path"]):
            raise AdapterError(f"--lm {name}: {AN_ADAPTER}") from error
        raise _refusal(error, f"--lm {name} is not a transformers language model", where, "config.json") from error


def read_tokenizer(where: dict[str, Any], gguf: GgufFile | None, name: str) -> PreTrainedTokenizerBase:
    """As `load_tokenizer`, for what `opened` gives."""
    folder = Path(where["pretrained_model_name_or_path"])
    if not gguf and folder.is_dir() and (missing := missing_tokenizer(folder)):
        raise AdapterError(f"--lm {name}: {missing}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
    except BaseException as error:
        raise _refusal(error, f"--lm {name}: its tokenizer can't be loaded", where) from error
    if gguf and gguf.chat_template:
        tokenizer.chat_template = gguf.chat_template
    return tokenizer


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, name: str) -> None:
    """Raise AdapterError when the tokenizer makes ids that the model has no embedding for."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    vocabulary = tokenizer.get_vocab()
    if not vocabulary:
        raise AdapterError(f"--lm {name}: its tokenizer has no tokens; copy tokenizer.json from the original model")
    # A special token that nothing prints, such as a pad token of a fine-tune's own, does no harm: words from data never
    # become special tokens.
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    unused = (special | set(tokenizer.all_special_tokens)) - {tokenizer.bos_token, tokenizer.eos_token}
    template = str(tokenizer.chat_template or "")
    beyond = {id_: token for token, id_ in vocabulary.items() if id_ >= len(weight)}
    used = [id_ for id_, token in beyond.items() if token not in unused or token in template]
    if used:
        raise AdapterError(
            f"--lm {name}: its tokenizer knows {beyond[used[0]]!r} as id {used[0]}, and the model embeds ids below "
            f"{len(weight)}; copy tokenizer.json and tokenizer_config.json from the model that the weights belong to"
        )


def _refusal(error: BaseException, what: str, where: dict[str, Any], config: str = "") -> BaseException:
    """The AdapterError for whatever transformers raised: it names the damaged file where one is found, among all files
    or as the one called `config`. Ctrl-C and exits stay what they are.

    The tokenizers library panics over some files, and a panic isn't an `Exception`.
    """
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        return error
    folder = Path(where["pretrained_model_name_or_path"])
    local = folder.is_dir() and "gguf_file" not in where and "trust_remote_code" not in str(error)
    if local and (damage := damage_of(folder / config) if config else find_damage(folder)):
        return AdapterError(f"{what}: {damage}")
    return AdapterError(f"{what}: {_explain(error)}")


def _explain(error: BaseException) -> str:
    """An error of transformers in a few words."""
    if "trust_remote_code" in str(error):
        return (
            "it brings Python code of its own, which isn't run; use a model of a class that transformers has, or read "
            "that code and pass --trust-remote-code"
        )
    if "ignore_mismatched_sizes" in str(error):
        return "its weights have other sizes than config.json says; download both again"
    return (str(error).strip() or type(error).__name__).splitlines()[0]
