"""LoRA for stage 2: low-rank maps beside the frozen model's linear layers, kept as a folder that PEFT knows.

A layer that gave W x then gives W x + (alpha / r) B A x (Hu et al. 2021, arXiv 2106.09685); B starts at zero, so that
the first step begins with the model as it was. PEFT puts the maps in and computes them, in fp32 whatever the precision
of W, which stays as it is: on 4 bits this is QLoRA (Dettmers et al. 2023, arXiv 2305.14314). No dropout: the model
stays in `eval()`.
"""

import json
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from periscope.adapters.lm.families import quirk_of
from periscope.adapters.lm.language_model import LanguageModel
from periscope.errors import AdapterError

# PEFT brings in bitsandbytes, which says on a CPU what would be faster.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
FOLDER, CONFIG, WEIGHTS = "lora", "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # before each name in PEFT's files
# What a config may say besides PEFT's defaults: the size, where, and what changes nothing of the result here.
FREE = {"r", "lora_alpha", "target_modules", "fan_in_fan_out", "lora_dropout", "inference_mode", "task_type"} | {
    "base_model_name_or_path", "revision", "peft_version"
}  # fmt: skip


def parse_lora(words: str) -> tuple[int, int]:
    """The rank and alpha that `--lora` names, as in "r=64,alpha=16"; without alpha it is the rank, a scale of 1.

    Raises AdapterError for anything else.
    """
    found = re.fullmatch(r"\s*r=(\d+)\s*(?:,\s*alpha=(\d+)\s*)?", words)
    if not found or int(found[1]) < 1 or int(found[2] or 1) < 1:
        raise AdapterError(f"--lora {words!r} isn't of the form r=64,alpha=16, both above 0")
    return int(found[1]), int(found[2] or found[1])


def lora_layers(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """The layers of a model without LoRA that LoRA goes on, with their widths (in, out): all linear ones but the head,
    or those that the family's row in `adapters.quirks` names. The model may be on the meta device.

    Raises AdapterError for a model that has a LoRA already.
    """
    if lora_parameters(model):
        raise AdapterError("this language model has a LoRA already, and there can be one at a time")
    head, some = model.get_output_embeddings(), quirk_of(model.config).lora
    found = {}
    for name, layer in model.named_modules():
        if layer is head or (some and name.rpartition(".")[2] not in some):
            continue
        if isinstance(layer, nn.Linear):
            found[name] = (layer.in_features, layer.out_features)
        elif isinstance(layer, Conv1D):
            found[name] = (layer.nx, layer.nf)
    return found


def lora_size(model: PreTrainedModel, rank: int) -> int:
    """The number of parameters of a LoRA of this rank on all of `lora_layers`."""
    return sum(rank * (inner + outer) for inner, outer in lora_layers(model).values())


def lora_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The parameters of a model's LoRA by PEFT's names, in the order of its layers; none without LoRA."""
    return {
        name.replace(".default.", "."): parameter
        for name, parameter in model.named_parameters()
        if ".lora_A." in name or ".lora_B." in name
    }


def insert_lora(model: PreTrainedModel, rank: int, alpha: float, name: str = "", targets: Sequence[str] = ()) -> None:
    """Put a new LoRA into a model, in fp32 and trained: A at random (from torch's generator), B zero. It goes on the
    layers whose last name is in `targets`, or on all of `lora_layers`, and raises as that does; `name` is the model's.
    """
    from peft import LoraConfig, inject_adapter_in_model  # a second to import, which only stage 2 pays

    layers = lora_layers(model)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=name,
        r=rank,
        lora_alpha=alpha,
        target_modules=sorted(targets or last_names(layers)),
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in model.modules()),
    )
    inject_adapter_in_model(config, model)
    model.eval()
    for parameter in lora_parameters(model).values():
        parameter.data = parameter.data.float()


def add_lora(lm: LanguageModel, rank: int, alpha: float, targets: Sequence[str] = ()) -> None:
    """Put a new LoRA on a language model, and note its size there. See `insert_lora`."""
    insert_lora(lm.model, rank, alpha, lm.name, targets)
    lm.lora = {"r": rank, "alpha": alpha}


def remove_lora(lm: LanguageModel) -> None:
    """Take a language model's LoRA out, if it has one: the model is then as it was before `add_lora`."""
    for name, layer in list(lm.model.named_modules()):
        if hasattr(layer, "base_layer"):
            lm.model.set_submodule(name, layer.base_layer)
    if lm.lora:
        del lm.model.peft_config
    lm.lora = None


def save_lora(folder: Path, lm: LanguageModel, dtype: torch.dtype = torch.float32) -> None:
    """Write a language model's LoRA into `folder`, which must not exist yet, so that
    `peft.PeftModel.from_pretrained(model, folder)` answers as ours does.
    """
    folder.mkdir(parents=True)
    config = lm.model.peft_config["default"]
    said = config.to_dict() | {"target_modules": sorted(config.target_modules), "inference_mode": True}
    (folder / CONFIG).write_text(json.dumps(said, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    state = {PREFIX + name: value.detach() for name, value in lora_parameters(lm.model).items()}
    tensors = {name: value.to("cpu", dtype).contiguous() for name, value in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def load_lora(lm: LanguageModel, folder: Path, trained: bool = False) -> None:
    """Put the LoRA of `folder` on a language model, in fp32; `trained`: to be trained on.

    Only plain LoRA on layers of `lora_layers` is taken, and nothing but its two files is read. Raises AdapterError for
    any other, for one that is damaged or was made for another model, and for a model that has one already.
    """
    folder, layers = Path(folder), lora_layers(lm.model)
    rank, alpha, targets = read_lora_config(folder)
    if strange := sorted(set(targets) - last_names(layers)):
        raise AdapterError(f"{folder / CONFIG} puts LoRA on {strange[0]}, and {lm.name} takes none there")
    wanted = {}
    for name, (inner, outer) in layers.items():
        if name.rpartition(".")[2] in targets:
            wanted |= {f"{PREFIX}{name}.lora_A.weight": [rank, inner], f"{PREFIX}{name}.lora_B.weight": [outer, rank]}
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            found = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if found != wanted:
            odd = next(name for name in sorted(found | wanted) if found.get(name) != wanted.get(name))
            raise AdapterError(
                f"{folder / WEIGHTS} isn't a LoRA of this size for {lm.name}: {odd} is {found.get(odd, 'missing')} "
                f"and should be {wanted.get(odd, 'left out')}"
            )
        state = load_file(folder / WEIGHTS, device=str(lm.device))
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{folder / WEIGHTS} can't be read: {error}") from None
    add_lora(lm, rank, alpha, targets)
    with torch.no_grad():
        for name, parameter in lora_parameters(lm.model).items():
            parameter.copy_(state[PREFIX + name])
            parameter.requires_grad_(trained)


def read_lora_config(folder: Path) -> tuple[int, float, list[str]]:
    """Read the rank, alpha and last names of the layers from PEFT's config of a LoRA. Raises AdapterError for a damaged
    one, and for one that asks for anything else than plain LoRA of one size on layers it names.
    """
    from peft import LoraConfig

    path = folder / CONFIG
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        kind, rank, alpha, targets = (fields[name] for name in ("peft_type", "r", "lora_alpha", "target_modules"))
    except FileNotFoundError:
        raise AdapterError(f"{folder} holds no {CONFIG}, so it is no LoRA") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{path} is damaged: {error!r}") from None
    plain = LoraConfig().to_dict() | {"peft_type": "LORA"}
    odd = [name for name, value in fields.items() if name not in FREE and value and value != plain.get(name)]
    if kind != "LORA" or odd:
        raise AdapterError(f"{path} asks for {', '.join(odd) or kind}, and only plain LoRA is taken here")
    sizes = type(rank) is int and rank > 0 and type(alpha) in (int, float) and alpha > 0
    if not sizes or not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
        raise AdapterError(f"{path} is damaged: r {rank!r}, lora_alpha {alpha!r}, target_modules {targets!r}")
    return rank, alpha, targets


def last_names(layers: Iterable[str]) -> set[str]:
    """The layers' own names, as `q_proj` of `model.layers.0.self_attn.q_proj`."""
    return {name.rpartition(".")[2] for name in layers}
