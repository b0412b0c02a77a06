"""The adapter folder, the small thing that people share: weights as safetensors, the rest as JSON, and a card."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from periscope.adapters.io.card import card
from periscope.adapters.io.schema import LARGEST, fault_of
from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.lm.lora import FOLDER as LORA
from periscope.adapters.lm.lora import lora_parameters, save_lora
from periscope.adapters.model import Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.errors import AdapterError

FORMAT = 1
WEIGHTS, CONFIG, CARD = "adapter.safetensors", "adapter.json", "README.md"


def save_adapter(
    folder: Path, adapter: Adapter, about: dict, dtype: torch.dtype = torch.float32, lm: LanguageModel | None = None
) -> None:
    """Write an adapter into `folder`, which must not exist yet (the caller renames a temporary one into place); with
    `lm`, the LoRA that is on it too, into lora/.

    `about` holds what the adapter was made for: `encoder` (from the feature set's manifest), `modality`,
    `language_model` (`name` and `identity`), `template` and `training`, all plain JSON. `dtype` is fp32 in a run,
    bf16 to share.
    """
    folder.mkdir(parents=True)
    config = {
        "format": FORMAT,
        "adapter": adapter.spec,
        "features": {
            "kind": adapter.features.kind,
            "tokens": adapter.features.tokens,
            "width": adapter.features.width,
            "grid": list(adapter.features.grid) if adapter.features.grid else None,
        },
        "hidden_size": adapter.hidden_size,
        "tokens": adapter.tokens,
        "soft_prompt": adapter.soft_tokens,
        "soft_prompt_mlp": bool(adapter.soft_prompt is not None and adapter.soft_prompt.mlp),
        "output_norm": adapter.output_norm,
        "projector_hidden": adapter.projector_hidden,
        "projector_layers": adapter.projector_layers,
        "injection": adapter.injection,
        "embedding_rms": adapter.embedding_rms,
        "lora": lm.lora if lm else None,
        **about,
    }
    state = {key: tensor.detach().to("cpu", dtype).contiguous() for key, tensor in adapter.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    maps = sum(parameter.numel() for parameter in lora_parameters(lm.model).values()) if config["lora"] else 0
    numbers = sum(parameter.numel() for parameter in adapter.parameters())
    (folder / CARD).write_text(card(config, numbers, maps), encoding="utf-8")
    if config["lora"]:
        save_lora(folder / LORA, lm, dtype)


def read_adapter_config(folder: Path) -> dict:
    """Read `adapter.json`. Raises AdapterError when the folder holds no adapter of a format known here, or one whose
    fields can't be what they are (`adapters.config`).
    """
    folder = Path(folder)
    try:
        if (size := (folder / CONFIG).stat().st_size) > LARGEST:
            raise AdapterError(f"{folder / CONFIG} has {size:,} bytes, which no adapter's description takes")
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterError(f"{folder} holds no {CONFIG}, so it is not an adapter folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{folder / CONFIG} can't be read: {error}") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else None
        raise AdapterError(f"{folder / CONFIG} has format {found!r}, and this version reads format {FORMAT}")
    if fault := fault_of(config):
        raise AdapterError(f"{folder / CONFIG} is damaged: {fault}")
    return config


def load_adapter(folder: Path, device: str = "cpu") -> tuple[Adapter, dict]:
    """Load an adapter in fp32 with its config. Raises AdapterError for a damaged or foreign folder."""
    folder = Path(folder)
    config = read_adapter_config(folder)
    try:
        shape = config["features"]
        features = FeatureShape(
            shape["kind"], shape["tokens"], shape["width"], tuple(shape["grid"]) if shape["grid"] else None
        )
        with torch.device("meta"):
            adapter = Adapter(
                config["adapter"],
                features,
                config["hidden_size"],
                config["embedding_rms"],
                config["soft_prompt"],
                config["output_norm"],
                config.get("projector_hidden", 0),
                config.get("projector_layers", 0),
                config.get("injection"),
                config.get("soft_prompt_mlp", False),
            )
        state = load_file(folder / WEIGHTS, device=device)
        adapter.load_state_dict({key: tensor.float() for key, tensor in state.items()}, assign=True)
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterError(f"{folder / CONFIG} is damaged: {error!r}") from None
    except (OSError, SafetensorError, RuntimeError) as error:
        raise AdapterError(f"{folder / WEIGHTS} doesn't hold this adapter's weights: {error}") from None
    if broken := [name for name, value in adapter.named_parameters() if not value.isfinite().all()]:
        raise AdapterError(f"{folder / WEIGHTS} holds numbers that aren't finite, in {broken[0]}; fetch it again")
    return adapter, config


def write_folder(out: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a folder under a temporary name, and rename it to `out`. Raises AdapterError where `out` exists
    or can't be written.
    """
    if out.exists():
        raise AdapterError(f"{out} exists, and nothing is overwritten; choose another --out")
    temporary = out.with_name(out.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        write(temporary)
        os.rename(temporary, out)
    except OSError as error:
        raise AdapterError(f"{out} can't be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
