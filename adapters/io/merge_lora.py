"""A language model with its LoRA merged, W + (alpha / r) B A in the place of W, for programs without LoRA."""

import contextlib
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import GenerationConfig

from periscope.adapters.io.checkpoint import load_adapter, save_adapter, write_folder
from periscope.adapters.io.schema import refuse_no_merge
from periscope.adapters.lm.files.find import find_model
from periscope.adapters.lm.identity import same_language_model
from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.lm.load import load_config, load_language_model
from periscope.adapters.lm.lora import FOLDER, WEIGHTS, load_lora
from periscope.adapters.lm.precision import DTYPES, stored_precision
from periscope.errors import AdapterError
from periscope.quiet import quiet_transformers

MARK = "merged_lora"  # in the merged model's config, so that its identity differs from the plain model's


def merge_lora(folder: Path, out: Path, lm: str | None = None, precision: str | None = None) -> None:
    """Write the language model of the adapter in `folder`, with its LoRA merged, to `out`, which must not exist, and
    the adapter for that model, without LoRA, to `out`/adapter.

    Sums are computed in fp32 on the CPU from weights in full precision, and stored in `precision`, by default the
    model's own. `lm` says where the language model is now, if it has moved. Raises AdapterError for an adapter without
    LoRA, another language model, and one stored in 8 or 4 bits.
    """
    adapter, config = load_adapter(folder)
    name = lm or config.language_model.name
    refuse_merge(out, name, config.lora)
    base = load_language_model(name, "cpu", "fp32")
    if difference := same_language_model(config.language_model.identity, base.identity()):
        raise AdapterError(f"{name} is not the language model that {folder} was trained with: {difference}")
    load_lora(base, folder / FOLDER)
    source = find_model(name)
    stored = getattr(load_config(source, name).get_text_config(), "dtype", None)
    dtype: torch.dtype = DTYPES[precision] if precision else stored or torch.float32
    merge_into(base)
    setattr(base.model.config, MARK, hashlib.sha256((folder / FOLDER / WEIGHTS).read_bytes()).hexdigest())

    def write(place: Path) -> None:
        with contextlib.suppress(OSError, ValueError):  # the model may have none of its own
            base.model.generation_config = GenerationConfig.from_pretrained(source)
        cast(nn.Module, base.model).to(dtype)
        with quiet_transformers():
            base.model.save_pretrained(place)
        base.tokenizer.save_pretrained(place)
        identity = replace(load_language_model(str(place), "cpu", "fp32").identity(), precision=None)
        about = {
            "modality": config.modality,
            "encoder": config.encoder,
            "storage": config.storage,
            "language_model": {"name": str(out), "identity": identity},
            "template": config.template,
            "training": config.training,
        }
        save_adapter(place / "adapter", adapter, about)

    write_folder(out, write)
    print(
        f"{out} is ready: {name} with LoRA merged, in {str(dtype).removeprefix('torch.')}; its adapter is {out}/adapter"
    )


def refuse_merge(out: Path, lm: str, lora: object) -> None:
    """Raise AdapterError when there is nothing to merge, `out` exists, or the weights are stored in 8 or 4 bits."""
    refuse_no_merge(out, lora)
    if bits := stored_precision(load_config(find_model(lm), lm)):
        raise AdapterError(
            f"{lm} is stored in {bits}, where a LoRA can't be merged without loss; name the model it was made from, "
            "in full precision: periscope export merged RUN --out FOLDER --lm MODEL"
        )


@torch.no_grad()
def merge_into(lm: LanguageModel) -> None:
    """Add a language model's LoRA to its weights and remove it."""
    for name, layer in list(lm.model.named_modules()):
        if hasattr(layer, "base_layer"):
            cast(Any, layer).merge()
            lm.model.set_submodule(name, cast(nn.Module, layer.base_layer))
    del cast(Any, lm.model).peft_config
    lm.lora = None
