"""LoRA for stage 2: low-rank updates of the frozen model's linear layers, stored as a PEFT folder.

A layer W x becomes W x + (alpha / r) B A x (Hu et al. 2021, arXiv 2106.09685). B starts at zero, so the first step sees
the unchanged model. PEFT inserts and computes the update, in fp32 whatever the precision of W, which stays frozen: with
4-bit weights this is QLoRA (Dettmers et al. 2023, arXiv 2305.14314). There is no dropout: the model stays in `eval()`.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from periscope.adapters.lm.families import family_of
from periscope.adapters.lm.language_model import LanguageModel, LoraSize
from periscope.adapters.names import LORA, LORA_CONFIG, LORA_WEIGHTS
from periscope.adapters.tensors import load_tensors, save_tensors
from periscope.errors import AdapterError

# PEFT imports bitsandbytes, which warns on a CPU that other kernels would be faster.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
FOLDER, CONFIG, WEIGHTS = LORA, LORA_CONFIG, LORA_WEIGHTS
PREFIX = "base_model.model."  # before each name in PEFT's files
# Config fields that may differ from PEFT's defaults: the size, the layers, and what doesn't change the output.
FREE_FIELDS = {"r", "lora_alpha", "target_modules", "fan_in_fan_out", "lora_dropout", "inference_mode", "task_type"} | {
    "base_model_name_or_path", "revision", "peft_version"
}  # fmt: skip


def lora_layers(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """The layers that LoRA goes on, by name, with their widths (in, out): all linear layers but the head, or those
    named in the family's row. The model may be on the meta device.

    Raises AdapterError for a model that has a LoRA already.
    """
    if lora_parameters(model):
        raise AdapterError("this language model has a LoRA already, and there can be one at a time")
    head, allowed = model.get_output_embeddings(), family_of(model.config).lora
    layers = {}
    for name, layer in model.named_modules():
        if layer is head or (allowed and name.rpartition(".")[2] not in allowed):
            continue
        if isinstance(layer, nn.Linear):
            layers[name] = (layer.in_features, layer.out_features)
        elif isinstance(layer, Conv1D):
            layers[name] = (layer.nx, layer.nf)
    return layers


def lora_size(model: PreTrainedModel, rank: int) -> int:
    """Number of parameters of a LoRA of this rank on all of `lora_layers`."""
    return sum(rank * (inputs + outputs) for inputs, outputs in lora_layers(model).values())


def lora_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """A model's LoRA parameters by PEFT's names, in the order of its layers; empty without LoRA."""
    return {
        name.replace(".default.", "."): parameter
        for name, parameter in model.named_parameters()
        if ".lora_A." in name or ".lora_B." in name
    }


def insert_lora(model: PreTrainedModel, rank: int, alpha: float, name: str = "", targets: Sequence[str] = ()) -> None:
    """Insert a new trainable LoRA in fp32: A random (from torch's generator), B zero.

    It goes on the layers whose last name is in `targets`, or on all of `lora_layers`. `name` is the model's, for the
    config. Raises AdapterError as `lora_layers` does.
    """
    from peft import LoraConfig, inject_adapter_in_model  # takes a second to import

    layers = lora_layers(model)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=name,
        r=rank,
        lora_alpha=cast(int, alpha),  # PEFT takes any number
        target_modules=sorted(targets or last_names(layers)),
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in model.modules()),
    )
    inject_adapter_in_model(config, model)
    model.eval()
    for parameter in lora_parameters(model).values():
        parameter.data = parameter.data.float()
    for name, module in model.named_modules():
        if ".lora_A." in name:
            module.register_forward_pre_hook(_contiguous_input)


def _contiguous_input(_: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """Make a layer's input contiguous.

    For other inputs torch.matmul picks mm for weights that require gradients and bmm for those that don't, so a trained
    LoRA would differ in the last bits once it is loaded frozen. mm would copy such an input anyway.
    """
    return (args[0].contiguous(),)


def add_lora(lm: LanguageModel, rank: int, alpha: float, targets: Sequence[str] = ()) -> None:
    """Insert a new LoRA into a language model and record its size there; see `insert_lora`."""
    insert_lora(lm.model, rank, alpha, lm.name, targets)
    lm.lora = LoraSize(rank, alpha)


def remove_lora(lm: LanguageModel) -> None:
    """Remove a language model's LoRA, if it has one; the model is then as it was before `add_lora`."""
    for name, layer in list(lm.model.named_modules()):
        if hasattr(layer, "base_layer"):
            lm.model.set_submodule(name, cast(nn.Module, layer.base_layer))
    if lm.lora:
        del cast(Any, lm.model).peft_config
    lm.lora = None


def save_lora(folder: Path, lm: LanguageModel, dtype: torch.dtype = torch.float32) -> None:
    """Write a language model's LoRA into `folder`, which must not exist yet. `peft.PeftModel.from_pretrained(model,
    folder)` loads it and computes the same.
    """
    folder.mkdir(parents=True)
    config = cast(Any, lm.model).peft_config["default"]
    fields = config.to_dict() | {"target_modules": sorted(config.target_modules), "inference_mode": True}
    (folder / CONFIG).write_text(json.dumps(fields, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    state = {PREFIX + name: value.detach() for name, value in lora_parameters(lm.model).items()}
    tensors = {name: value.to("cpu", dtype).contiguous() for name, value in state.items()}
    save_tensors(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def load_lora(lm: LanguageModel, folder: Path, trained: bool = False) -> None:
    """Load the LoRA in `folder` onto a language model, in fp32, with gradients if `trained`.

    Only plain LoRA on layers of `lora_layers` is accepted, and only its two files are read. Raises AdapterError for any
    other, for a damaged one, for one made for another model, and for a model that has a LoRA already.
    """
    folder, layers = Path(folder), lora_layers(lm.model)
    rank, alpha, targets = read_lora_config(folder)
    if unknown := sorted(set(targets) - last_names(layers)):
        raise AdapterError(f"{folder / CONFIG} puts LoRA on {unknown[0]}, and {lm.name} takes none there")
    expected: dict[str, list[int]] = {}
    for name, (inputs, outputs) in layers.items():
        if name.rpartition(".")[2] in targets:
            expected[f"{PREFIX}{name}.lora_A.weight"] = [rank, inputs]
            expected[f"{PREFIX}{name}.lora_B.weight"] = [outputs, rank]
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if shapes != expected:
            wrong = next(name for name in sorted(shapes | expected) if shapes.get(name) != expected.get(name))
            raise AdapterError(
                f"{folder / WEIGHTS} isn't a LoRA of this size for {lm.name}: {wrong} is "
                f"{shapes.get(wrong, 'missing')} and should be {expected.get(wrong, 'left out')}"
            )
        state = load_tensors(folder / WEIGHTS, str(lm.device))
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{folder / WEIGHTS} can't be read: {error}") from None
    add_lora(lm, rank, alpha, targets)
    with torch.no_grad():
        for name, parameter in lora_parameters(lm.model).items():
            parameter.copy_(state[PREFIX + name])
            parameter.requires_grad_(trained)


def read_lora_config(folder: Path) -> tuple[int, float, list[str]]:
    """Rank, alpha and last names of the layers from PEFT's config of a LoRA.

    Raises AdapterError for a damaged config, and for anything but plain LoRA of one size on layers it names.
    """
    from peft import LoraConfig

    path = folder / CONFIG
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise TypeError("no JSON object")
        kind, rank, alpha, targets = (fields[name] for name in ("peft_type", "r", "lora_alpha", "target_modules"))
    except FileNotFoundError:
        raise AdapterError(f"{folder} holds no {CONFIG}, so it is no LoRA") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise AdapterError(f"{path} is damaged: {error!r}") from None
    plain = LoraConfig().to_dict() | {"peft_type": "LORA"}
    unusual = [name for name, value in fields.items() if name not in FREE_FIELDS and value and value != plain.get(name)]
    if kind != "LORA" or unusual:
        raise AdapterError(f"{path} asks for {', '.join(unusual) or kind}, and only plain LoRA is loaded")
    sizes = type(rank) is int and rank > 0 and type(alpha) in (int, float) and alpha > 0
    if not sizes or not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
        raise AdapterError(f"{path} is damaged: r {rank!r}, lora_alpha {alpha!r}, target_modules {targets!r}")
    return rank, alpha, targets


def last_names(layers: Iterable[str]) -> set[str]:
    """The last parts of the layers' names: `q_proj` of `model.layers.0.self_attn.q_proj`."""
    return {name.rpartition(".")[2] for name in layers}
