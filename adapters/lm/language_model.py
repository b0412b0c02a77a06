"""Loading a causal language model, in some precision, and freezing it."""

import hashlib
import importlib.util
import json
import logging
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from periscope.adapters.lm.families import ModelFamily, find_fault, quirk_of, why_refused
from periscope.adapters.lm.selective_scan import use_selective_scan
from periscope.errors import AdapterError

PROJECT = Path(__file__).resolve().parents[2]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PRECISIONS = ("auto", *DTYPES, "8bit", "4bit")
ROUNDING = 0.006  # of a value: more is another value


@dataclass
class LanguageModel:
    """A frozen causal language model with its tokenizer.

    `reason` says why `precision` was chosen; `embedding_rms` is the median RMS of what its embedding module returns for
    the words of its vocabulary (the module's output: Gemma's is scaled). `note`: what else was chosen, for people.
    `lora`: the size {"r", "alpha"} of the LoRA that is on it (`adapters.lora`), which the identity leaves out.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    precision: str
    reason: str
    embedding_rms: float
    note: str = ""
    lora: dict | None = None

    @property
    def hidden_size(self) -> int:
        """The width of its word embeddings (OPT-350M's are narrower than its layers)."""
        return self.model.get_input_embeddings().weight.shape[1]

    @property
    def layer_size(self) -> int:
        """The width of its layers."""
        return self.model.config.get_text_config().hidden_size

    @property
    def depth(self) -> int:
        """How many layers it has."""
        return self.model.config.get_text_config().num_hidden_layers

    @property
    def quirk(self) -> ModelFamily:
        """What its family needs."""
        return quirk_of(self.model.config)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.get_input_embeddings().weight.dtype

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    @property
    def max_length(self) -> int:
        """The longest sequence its positions allow, in tokens; no limit for a model without positions."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Word embeddings as the model itself sees them: `(..., hidden_size)` in the model's dtype."""
        return self.model.get_input_embeddings()(ids)

    def identity(self) -> dict:
        """What an adapter records to know this model again, whatever the precision it is loaded in.

        Hashes of the config and of the tokenizer, a few embedding values, and a few of matrices inside, which tell a
        fine-tune that left the embeddings alone. Values are compared with a tolerance because fp16, bf16 and fp32
        copies of one model round differently; bitsandbytes leaves embeddings alone, and of its copies nothing else is
        compared. The precision is recorded, and another one is no difference.
        """
        config = {k: v for k, v in self.model.config.to_dict().items() if k not in _VOLATILE}
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        return {
            "model_type": self.model.config.model_type,
            "hidden_size": self.hidden_size,
            "config": _sha256(json.dumps(config, sort_keys=True, default=str)),
            "tokenizer": _sha256(json.dumps([vocabulary, self.tokenizer.chat_template], default=str)),
            "embedding_sample": self._embedding_sample(),
            "weight_sample": self._weight_sample() if self.precision in DTYPES else {},
            "precision": self.precision,
        }

    def _embedding_sample(self) -> list[float]:
        weight = self.model.get_input_embeddings().weight
        rows = torch.linspace(0, len(weight) - 1, 16, device=weight.device).long()
        columns = torch.linspace(0, weight.shape[1] - 1, 16, device=weight.device).long()
        return [round(value, 6) for value in weight[rows, columns].float().tolist()]

    def _weight_sample(self) -> dict[str, list[float]]:
        """Four values of each of eight matrices, evenly chosen; LoRA and the embeddings aren't among them."""
        own = {name.replace(".base_layer.", "."): value for name, value in self.model.named_parameters()}
        outer = {
            id(part.weight) for part in (self.model.get_input_embeddings(), self.model.get_output_embeddings()) if part
        }
        names = sorted(n for n, v in own.items() if v.dim() == 2 and ".lora_" not in n and id(v) not in outer)
        found = {}
        for place in torch.linspace(0, len(names) - 1, min(8, len(names))).long().tolist():
            flat = own[names[place]].detach().flatten()
            some = flat[torch.linspace(0, len(flat) - 1, 4, dtype=torch.float64, device=flat.device).long()]
            found[names[place]] = [float(f"{value:.6g}") for value in some.float().tolist()]
        return found


_VOLATILE = {"_name_or_path", "dtype", "torch_dtype", "transformers_version", "quantization_config", "use_cache"}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def same_language_model(recorded: dict, found: dict) -> str | None:
    """Say in a few words how the model `found` differs from the one an adapter recorded; None when it is the same."""
    for field in ("model_type", "hidden_size", "config", "tokenizer", "embedding_sample"):
        if field not in recorded:
            return f"the adapter doesn't say what its {field.replace('_', ' ')} was"
        if field != "embedding_sample" and recorded[field] != found[field]:
            shown = "" if len(str(found[field])) > 20 else f" ({found[field]} instead of {recorded[field]})"
            return f"its {field.replace('_', ' ')} differs{shown}"
    if _apart(recorded["embedding_sample"], found["embedding_sample"]):
        return "its weights differ"
    ours, theirs = recorded.get("weight_sample") or {}, found.get("weight_sample") or {}
    if any(_apart(ours[name], theirs[name]) for name in ours.keys() & theirs.keys()):
        return "its weights differ, though not its embeddings"
    return None


def _apart(a: list[float], b: list[float]) -> bool:
    """Whether values differ by more than rounding to bf16, which moves a number by up to 0.4% when done twice."""
    if len(a) != len(b):
        return True
    one, other = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    return not ((one - other).abs() <= ROUNDING * torch.maximum(one.abs(), other.abs()) + 1e-6).all()


def precisions_differ(recorded: dict, found: dict) -> str | None:
    """Say that one language model is held in another precision than an adapter was trained with; None when it isn't.

    That is no mistake: AnyMAL (arXiv 2309.16058, section 3) trains on 4 and 8 bits and answers in full precision.
    """
    trained, here = recorded.get("precision"), found["precision"]
    return None if trained in (None, here) else f"trained with {trained} weights, here in {here}"


def choose_precision(
    asked: str, device: torch.device, trained_in: torch.dtype | None, overflows: bool = False
) -> tuple[str, str]:
    """Choose how the frozen weights are held, with the reason: fp32 on a CPU, fp16 on a GPU.

    bf16 is taken where the model was trained in it and the card computes in it: fp16 can overflow there, and of a
    family that `overflows` it does. Raises AdapterError for a precision that doesn't exist, or that this machine
    doesn't have.
    """
    if asked not in PRECISIONS:
        raise AdapterError(f"unknown precision {asked!r}; choose from {', '.join(PRECISIONS)}")
    on_gpu = device.type == "cuda"
    has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if asked == "bf16" and on_gpu and not has_bf16:
        raise AdapterError("--precision bf16: this card doesn't compute in bf16; take fp16, 8bit or 4bit")
    if asked in ("8bit", "4bit") and importlib.util.find_spec("bitsandbytes") is None:
        raise AdapterError(f"--precision {asked} needs bitsandbytes: pip install bitsandbytes")
    if asked == "fp16" and overflows:
        return asked, "asked for, though this family's activations can overflow in it"
    if asked != "auto":
        return asked, "asked for"
    if device.type == "cpu":
        return "fp32", "the fastest exact choice on a CPU"
    if (trained_in == torch.bfloat16 or overflows) and has_bf16:
        return "bf16", "the model was trained in bf16 and this card computes in it"
    if overflows:
        return "fp32", "this family's activations overflow in fp16, and this card doesn't compute in bf16"
    return "fp16", "half the memory of fp32 at the card's full speed"


def load_language_model(name: str, device: str = "cpu", precision: str = "auto") -> LanguageModel:
    """Load a causal language model by folder or hub id, frozen and in `eval()`.

    Only safetensors weights are read and no code that comes with a model is run. Raises AdapterError when the model
    isn't there, is of a family that can't be driven by vectors, lacks weights, or has none in safetensors. A family
    that the tests don't know is driven by a few vectors first (`quirks.find_fault`).
    """
    source = find_model(name)
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise AdapterError(f"--lm {name} is not a transformers language model: {_first_line(error)}") from error
    if refused := why_refused(config):
        raise AdapterError(f"--lm {name} ({config.model_type}) can't be used: {refused}")
    quirk = quirk_of(config)
    trained_in = getattr(config.get_text_config(), "dtype", None)
    if stored := stored_in_bits(config):
        if precision not in ("auto", stored):
            raise AdapterError(
                f"--lm {name} is stored in {stored}, and --precision {precision} would need the weights it was made "
                "from; name that model instead, or leave --precision out"
            )
        precision, reason = stored, "as its weights are stored"
    else:
        precision, reason = choose_precision(precision, torch.device(device), trained_in, quirk.overflows)
    dtype = DTYPES.get(precision)
    quantization = {}
    if dtype is None:
        dtype = DTYPES[choose_precision("auto", torch.device(device), trained_in, quirk.overflows)[0]]
        if not stored:
            quantization["quantization_config"] = BitsAndBytesConfig(
                load_in_8bit=precision == "8bit",
                load_in_4bit=precision == "4bit",
                llm_int8_skip_modules=list(quirk.keep) or None,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            )
        # It says on every call that inputs are cast, which is what was asked for, and on a CPU what is faster there.
        for part in ("autograd._functions", "backends.cpu.ops"):
            logging.getLogger(f"bitsandbytes.{part}").setLevel(logging.ERROR)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model, loading = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            device_map={"": device},
            use_safetensors=True,
            output_loading_info=True,
            **quantization,
        )
    except (OSError, ValueError, ImportError) as error:
        raise AdapterError(f"--lm {name} can't be loaded: {_first_line(error)}") from error
    if missing := sorted(loading["missing_keys"]):
        raise AdapterError(
            f"--lm {name} lacks {len(missing)} of its weights, as {missing[0]}, and would be given random ones; "
            "fetch it again"
        )
    lm = freeze(name, model, tokenizer, precision, reason)
    if not quirk.tested:
        if fault := find_fault(model, 1e-3 if precision == "fp32" else 0.1):
            raise AdapterError(
                f"--lm {name} ({config.model_type}) can't be used: {fault}; use OPT, Llama, Qwen or Mamba"
            )
        lm.note = "; ".join(filter(None, [f"{config.model_type} isn't a tested family; it passed a trial", lm.note]))
    return lm


def stored_in_bits(config: PretrainedConfig) -> str | None:
    """How the weights themselves are stored, when that is in fewer bits: "4bit", "8bit", or another method's name."""
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return None
    stored = stored if isinstance(stored, dict) else stored.to_dict()
    bits = {"load_in_4bit": "4bit", "load_in_8bit": "8bit"}
    return next((bits[key] for key in bits if stored.get(key)), str(stored.get("quant_method", "fewer bits")))


def freeze(name: str, model: PreTrainedModel, tokenizer, precision: str = "fp32", reason: str = "") -> LanguageModel:
    """Freeze a loaded model: no gradient on any weight, no dropout, greedy decoding unless a caller asks otherwise."""
    model.requires_grad_(False).eval()
    # A model's own generation settings may sample or penalise, and would be mixed into every greedy request.
    model.generation_config = GenerationConfig()
    for part in model.modules():
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False  # bitsandbytes would repack 4-bit weights in place, scales rounded
    embedding = model.get_input_embeddings()
    count = min(len(embedding.weight), len(tokenizer))
    ids = torch.linspace(0, count - 1, min(count, 1024), device=embedding.weight.device).long()
    with torch.no_grad():
        rms = embedding(ids).float().pow(2).mean(-1).sqrt().median().item()
    return LanguageModel(name, model, tokenizer, precision, reason, rms, use_selective_scan(model))


def weights_sha256(model: torch.nn.Module) -> str:
    """Hash every weight and buffer of a model, to show that training left a frozen one alone. What LoRA adds beside
    them isn't hashed, nor the names that it moves them to.
    """
    digest = hashlib.sha256()
    own = {key.replace(".base_layer.", "."): t for key, t in model.state_dict().items() if ".lora_" not in key}
    for key, tensor in sorted(own.items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def find_model(name: str) -> str:
    """A folder, as given or inside the project (so that the demo is found from anywhere), or else the hub id itself.

    Raises AdapterError at once, not after a minute, for a folder that isn't there or a hub id that is out of reach.
    """
    for folder in (Path(name).expanduser(), PROJECT / name):
        if folder.is_dir():
            if not (folder / "config.json").is_file():
                raise AdapterError(f"--lm {name} is a folder without a config.json, so it is not a transformers model")
            return str(folder)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise AdapterError(f"--lm {name} is neither a folder that exists nor a hub id of the form owner/name")
    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return name
    if hub_in_reach():
        return name
    host, _ = _hub_address()
    raise AdapterError(
        f"--lm {name} is not on this machine and {host} can't be reached; connect, or pass a folder with the model"
    )


def hub_in_reach() -> bool:
    """Whether the Hub answers within three seconds; its own library would try for half a minute."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    try:
        socket.create_connection(_hub_address(), timeout=3).close()
    except OSError:
        return False
    return True


def _hub_address() -> tuple[str, int]:
    scheme, _, rest = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rpartition("//")
    host, _, port = rest.split("/")[0].partition(":")
    return host, int(port or (80 if scheme == "http:" else 443))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
