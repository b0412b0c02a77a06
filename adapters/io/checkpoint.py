"""The adapter folder, the small thing that people share: weights as safetensors, adapter.json, and a model card."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError

from periscope.adapters.io.card import card
from periscope.adapters.io.schema import CONFIG, FORMAT, LANGUAGE_MODEL, AdapterConfig, read_adapter_config
from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.lm.lora import FOLDER as LORA
from periscope.adapters.lm.lora import lora_parameters, save_lora
from periscope.adapters.model import Adapter
from periscope.adapters.names import CARD, WEIGHTS
from periscope.adapters.tensors import disk_errors, load_tensors, save_tensors
from periscope.atomic import DISK, disk_sentence, naming, replace_bytes, temporary_folder
from periscope.errors import AdapterError
from periscope.quiet import quiet_transformers


def save_adapter(
    folder: Path,
    adapter: Adapter,
    about: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
    lm: LanguageModel | None = None,
) -> None:
    """Write an adapter into `folder`, which must not exist yet (the caller renames a temporary one into place), with
    the LoRA of `lm`, if it has one, in lora/, or `lm` itself in lm/, if it was trained.

    `about` holds the fields of `AdapterConfig` that an `Adapter` doesn't know: `encoder`, `modality`, `storage`,
    `language_model` (see `RecordedLanguageModel`), `template` and `training`, as dataclasses or plain JSON. `dtype` of
    the weights is fp32 in a run and bf16 to share.
    """
    folder.mkdir(parents=True)
    state = {key: tensor.detach().to("cpu", dtype).contiguous() for key, tensor in adapter.state_dict().items()}
    save_tensors(state, folder / WEIGHTS, metadata={"format": "pt"})
    describe_adapter(folder, adapter, about, lm)
    if lm and lm.lora:
        save_lora(folder / LORA, lm, dtype)
    if lm and lm.trained:
        save_language_model(folder / LANGUAGE_MODEL, lm)


def save_language_model(folder: Path, lm: LanguageModel) -> None:
    """Write a language model and its tokenizer into `folder`, which must not exist yet, for transformers to load."""
    with disk_errors(folder), quiet_transformers():
        lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)


def describe_adapter(folder: Path, adapter: Adapter, about: Mapping[str, Any], lm: LanguageModel | None = None) -> None:
    """Write or replace adapter.json and the model card of the adapter in `folder`. Arguments as `save_adapter`."""
    soft_prompt = adapter.soft_prompt
    config = AdapterConfig.from_dict(
        {
            "format": FORMAT,
            "adapter": adapter.spec,
            "features": msgspec.to_builtins(adapter.features),
            "hidden_size": adapter.hidden_size,
            "tokens": adapter.tokens,
            "soft_prompt": adapter.soft_tokens,
            "soft_prompt_mlp": soft_prompt is not None and soft_prompt.mlp is not None,
            "output_norm": adapter.output_norm,
            "projector_hidden": adapter.projector_hidden,
            "projector_layers": adapter.projector_layers,
            "projector_frames": adapter.projector_frames,
            "soft_prompt_unit": adapter.soft_prompt_unit,
            "injection": msgspec.to_builtins(adapter.injection),
            "embedding_rms": adapter.embedding_rms,
            "lora": msgspec.to_builtins(lm.lora) if lm else None,
            **msgspec.to_builtins(about),
        }
    )
    config.write(folder / CONFIG)
    parameters = sum(parameter.numel() for parameter in adapter.parameters())
    lora = lora_parameters(lm.model) if lm and lm.lora else {}
    text = card(config, parameters, sum(parameter.numel() for parameter in lora.values()))
    replace_bytes(folder / CARD, text.encode())


def load_adapter(folder: Path, device: str = "cpu") -> tuple[Adapter, AdapterConfig]:
    """Load an adapter in fp32 with its config. Raises AdapterError for a damaged or foreign folder."""
    folder = Path(folder)
    config = read_adapter_config(folder)
    try:
        with torch.device("meta"):
            adapter = Adapter(
                config.adapter,
                config.features,
                config.hidden_size,
                config.embedding_rms,
                config.soft_prompt,
                config.output_norm,
                config.projector_hidden,
                config.projector_layers,
                config.injection,
                config.soft_prompt_mlp,
                config.projector_frames,
                config.soft_prompt_unit,
            )
        state = load_tensors(folder / WEIGHTS, device)
        adapter.load_state_dict({key: tensor.float() for key, tensor in state.items()}, assign=True)
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterError(f"{folder / CONFIG} is damaged: {error!r}") from None
    except (OSError, SafetensorError, RuntimeError) as error:
        why = " ".join(str(error).split())  # torch's has several lines
        raise AdapterError(f"{folder / WEIGHTS} doesn't hold this adapter's weights: {why}") from None
    if broken := [name for name, value in adapter.named_parameters() if not value.isfinite().all()]:
        raise AdapterError(f"{folder / WEIGHTS} holds numbers that aren't finite, in {broken[0]}; fetch it again")
    return adapter, config


def write_folder(out: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a folder under a temporary name, then rename it to `out`.

    Raises AdapterError when `out` exists or can't be written.
    """
    if out.exists():
        raise AdapterError(f"{out} exists, and nothing is overwritten; choose another --out")
    try:
        with naming(out), disk_errors(out), temporary_folder(out) as temporary:
            write(temporary)
            os.rename(temporary, out)
    except OSError as error:
        if error.errno in DISK:
            error.filename = str(out)
        raise AdapterError(disk_sentence(error) if error.errno else f"{out} can't be written: {error}") from error
