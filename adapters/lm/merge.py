"""A language model with its LoRA merged, for programs that know no LoRA: W + (alpha / r) B A in the place of W."""

import contextlib
import hashlib
from pathlib import Path

import torch
from transformers import AutoConfig, GenerationConfig

from periscope.adapters.io.checkpoint import load_adapter, save_adapter, write_folder
from periscope.adapters.lm.language_model import (
    DTYPES,
    LanguageModel,
    find_model,
    load_language_model,
    same_language_model,
    stored_in_bits,
)
from periscope.adapters.lm.lora import FOLDER, WEIGHTS, load_lora
from periscope.errors import AdapterError

MARK = "merged_lora"  # in the merged model's config, so that its identity isn't the plain model's


def merge_lora(folder: Path, out: Path, lm: str | None = None, precision: str | None = None) -> None:
    """Write to `out`, which must not exist, the language model of the adapter in `folder` with its LoRA merged, and to
    `out`/adapter the adapter without it, for that model.

    The sums are done in fp32 on the CPU, on the model's weights in full precision, and stored in `precision`, without
    it in what the model's own are stored in. `lm` says where the model is, if not where it was. Raises AdapterError for
    an adapter without LoRA, another model, and one that is stored in 8 or 4 bits.
    """
    adapter, config = load_adapter(folder)
    name = lm or config["language_model"]["name"]
    refuse_merge(out, name, config.get("lora"))
    base = load_language_model(name, "cpu", "fp32")
    if difference := same_language_model(config["language_model"]["identity"], base.identity()):
        raise AdapterError(f"{name} is not the language model that {folder} was trained with: {difference}")
    load_lora(base, folder / FOLDER)
    stored = getattr(AutoConfig.from_pretrained(find_model(name)).get_text_config(), "dtype", None)
    dtype = DTYPES[precision] if precision else stored or torch.float32
    merge_into(base)
    setattr(base.model.config, MARK, hashlib.sha256((folder / FOLDER / WEIGHTS).read_bytes()).hexdigest())

    def write(place: Path) -> None:
        with contextlib.suppress(OSError, ValueError):  # it may have none of its own
            base.model.generation_config = GenerationConfig.from_pretrained(find_model(name))
        base.model.to(dtype).save_pretrained(place)
        base.tokenizer.save_pretrained(place)
        merged = load_language_model(str(place), "cpu")
        names = ("modality", "encoder", "storage", "template", "training")
        about = {key: config[key] for key in names if key in config}
        about["language_model"] = {"name": str(out), "identity": merged.identity() | {"precision": None}}
        save_adapter(place / "adapter", adapter, about)

    write_folder(out, write)
    shown = str(dtype).removeprefix("torch.")
    print(f"{out} is ready: {name} with LoRA merged, in {shown}; its adapter is {out}/adapter")


def refuse_merge(out: Path, lm: str, lora: object) -> None:
    """Raise AdapterError when there is nothing to merge, nowhere to write, or weights in 8 or 4 bits to merge into."""
    if not lora:
        raise AdapterError("there is no LoRA to merge: --merge-lora is for stage 2, which --lora trains")
    if out.exists():
        raise AdapterError(f"{out} exists, and nothing is overwritten; choose another folder for the merged model")
    if bits := stored_in_bits(AutoConfig.from_pretrained(find_model(lm))):
        raise AdapterError(
            f"{lm} is stored in {bits}, where a LoRA can't be merged without loss; name the model it was made from, "
            "in full precision: python -m adapters merge-lora RUN --out FOLDER --lm MODEL"
        )


@torch.no_grad()
def merge_into(lm: LanguageModel) -> None:
    """Add a language model's LoRA to its weights, and take it out."""
    for name, layer in list(lm.model.named_modules()):
        if hasattr(layer, "base_layer"):
            layer.merge()
            lm.model.set_submodule(name, layer.base_layer)
    del lm.model.peft_config
    lm.lora = None
