"""Language models in mamba_ssm's format, as folders that transformers reads.

state-spaces/mamba-* (without -hf) and xiuyul/mamba-2.8b-zephyr, which Cobra has, are in it: a config.json of their
own and pytorch_model.bin (https://github.com/state-spaces/mamba, mamba_ssm/models). transformers has the same layers
under the same names but one.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import torch
from msgspec import Meta
from transformers import MambaConfig, MambaForCausalLM, PreTrainedTokenizerBase

from periscope.adapters.io.checkpoint import write_folder
from periscope.adapters.limits import MAX_FILE_BYTES, Size
from periscope.adapters.lm.files.find import find_model
from periscope.adapters.lm.load import load_tokenizer
from periscope.errors import AdapterError
from periscope.quiet import quiet_transformers
from periscope.weights import load_released

CONFIG = "config.json"
TOKENIZER = "EleutherAI/gpt-neox-20b"  # of all models that were released in this format
RENAMED = {"backbone.embedding.": "backbone.embeddings."}
# As Zephyr has turns, and Cobra (https://github.com/h-zhao1997/cobra, zephyr_prompter.py).
CHATS = {
    "zephyr": (
        "{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}"
        "{{ '<|assistant|>\n' + message['content'] + eos_token + ('' if loop.last else '\n') }}"
        "{% else %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    )
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


class _Scan(msgspec.Struct):
    """`ssm_cfg`: what a layer is made of, where it isn't mamba_ssm's default."""

    layer: str = "Mamba1"
    d_state: Size = 16
    d_conv: Annotated[int, Meta(ge=1, le=64)] = 4
    expand: Annotated[int, Meta(ge=1, le=64)] = 2
    dt_rank: Size | str = "auto"
    conv_bias: bool = True
    bias: bool = False


class _Config(msgspec.Struct):
    """config.json. Fields that say how kernels run are left out."""

    d_model: Size
    n_layer: Annotated[int, Meta(ge=1, le=4096)]
    ssm_cfg: _Scan = msgspec.field(default_factory=_Scan)
    rms_norm: bool = True
    residual_in_fp32: bool = True
    attn_layer_idx: list[int] = []
    d_intermediate: int = 0


def import_mamba_ssm(folder: Path, out: Path, tokenizer: str = "", chat: Literal["", "zephyr"] = "") -> None:
    """Make a folder that transformers reads of a language model in mamba_ssm's format: `periscope import mamba-ssm`.

    Raises AdapterError for another format.
    """
    config = _read_config(folder)
    state = _renamed(_read_weights(folder))
    own = all((folder / name).is_file() for name in TOKENIZER_FILES)
    name = tokenizer or (str(folder) if own else TOKENIZER)
    words = load_tokenizer(name if Path(name).is_dir() else find_model(name), name)
    words.chat_template = CHATS.get(chat, words.chat_template)
    model = _build(config, state, words, folder)

    def write(place: Path) -> None:
        with quiet_transformers():
            model.save_pretrained(place)
        words.save_pretrained(place)

    write_folder(out, write)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{out} is ready: Mamba with {parameters:,} parameters, {config.n_layer} layers; use it with --lm {out}")


def _read_config(folder: Path) -> _Config:
    """Read config.json. Raises AdapterError for another format, and for layers that transformers' Mamba lacks."""
    path = folder / CONFIG
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise AdapterError(f"{path} is larger than any model's description")
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict) and "model_type" in values and "d_model" not in values:
            raise AdapterError(
                f"{folder} is in transformers' format already ({values['model_type']}); use it with --lm"
            )
        config = msgspec.convert(values, _Config)
    except FileNotFoundError:
        raise AdapterError(f"{folder} holds no {CONFIG}; name the folder with the model's files") from None
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path} isn't a config of mamba_ssm: {error}") from None
    if config.ssm_cfg.layer != "Mamba1" or config.attn_layer_idx or config.d_intermediate:
        what = "attention layers" if config.attn_layer_idx else config.ssm_cfg.layer
        raise AdapterError(f"{path} has {what}, and only models of Mamba-1 layers are converted")
    if not config.rms_norm:
        raise AdapterError(f"{path} has LayerNorm, and transformers' Mamba has RMSNorm")
    return config


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the folder's checkpoint, safetensors where there are such. Raises AdapterError without any."""
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise AdapterError(f"{folder} holds no pytorch_model.bin and no safetensors file")
    state: dict[str, torch.Tensor] = {}
    for file in files:
        content = load_released(file, AdapterError)
        if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
            raise AdapterError(f"{file} holds something else than a model's tensors")
        state |= content
    return state


def _renamed(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors by transformers' names."""
    renamed = {}
    for name, tensor in state.items():
        for old, new in RENAMED.items():
            name = name.replace(old, new) if name.startswith(old) else name
        renamed[name] = tensor
    return renamed


def _build(
    config: _Config, state: dict[str, torch.Tensor], words: PreTrainedTokenizerBase, folder: Path
) -> MambaForCausalLM:
    """The model with these weights, in their dtype. Raises AdapterError, naming one, where they don't fit."""
    embeddings = state.get("backbone.embeddings.weight")
    if embeddings is None or embeddings.dim() != 2:
        raise AdapterError(f"{folder} holds no word embeddings (backbone.embedding.weight)")
    head = state.get("lm_head.weight", embeddings)
    tied = head.shape == embeddings.shape and torch.equal(head, embeddings)
    scan = config.ssm_cfg
    made = MambaConfig(
        vocab_size=len(embeddings),
        hidden_size=config.d_model,
        num_hidden_layers=config.n_layer,
        state_size=scan.d_state,
        conv_kernel=scan.d_conv,
        expand=scan.expand,
        time_step_rank=scan.dt_rank,
        use_conv_bias=scan.conv_bias,
        use_bias=scan.bias,
        residual_in_fp32=config.residual_in_fp32,
        tie_word_embeddings=tied,
        dtype=embeddings.dtype,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    with torch.device("meta"):
        model = MambaForCausalLM(made)
    expected = {name: list(value.shape) for name, value in model.state_dict().items()}
    shapes = {"lm_head.weight": list(head.shape)} | {name: list(value.shape) for name, value in state.items()}
    if shapes != expected:
        wrong = next(name for name in sorted(shapes | expected) if shapes.get(name) != expected.get(name))
        raise AdapterError(
            f"{folder} doesn't hold the model of its {CONFIG}: {wrong} is {shapes.get(wrong, 'missing')} and should be "
            f"{expected.get(wrong, 'left out')}"
        )
    if len(words) > len(embeddings):
        raise AdapterError(f"{folder} embeds {len(embeddings)} ids, and its tokenizer has {len(words)}; name another")
    model.load_state_dict({**state, "lm_head.weight": head}, assign=True)
    model.tie_weights()
    if broken := [name for name, value in model.named_parameters() if not value.isfinite().all()]:
        raise AdapterError(f"{folder} holds numbers that aren't finite, in {broken[0]}; fetch it again")
    result: Any = model.eval()
    return result
