"""Encoders by name: families register themselves here, and a name or a manifest's description becomes an encoder."""

import importlib
import pkgutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from periscope.errors import PrecomputeError
from periscope.model_folders import read_facts
from periscope.precompute.encoders.base import Encoder
from periscope.precompute.encoders.folders import find_folder
from periscope.precompute.encoders.names import ENCODERS, unknown_encoder
from periscope.shards.manifest import differences

FAMILIES: dict[str, Callable[..., Encoder]] = {}
PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
WRAPPERS = ("frames", "fused")  # families whose identifiers are names of encoders
Family = TypeVar("Family", bound=Callable[..., Encoder])


def register(name: str) -> Callable[[Family], Family]:
    """Decorator: make a class available as `--encoder name`, and as `--encoder name:identifier`."""

    def add(family: Family) -> Family:
        if FAMILIES.get(name, family).__qualname__ != family.__qualname__:
            raise ValueError(f"two encoders are called {name!r}")
        vars_of: Any = family
        vars_of.library = name
        FAMILIES[name] = family
        return family

    return add


def load_encoder(
    name: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    kinds: Collection[str] = ("pooled",),
    frames: int | None = None,
    **choices: Any,
) -> Encoder:
    """Load an encoder by a short name (`clip-l-336`), `family:identifier` (`open_clip:ViT-B-32-quickgelu/openai`), a
    folder (with open_clip_config.json or config.json), a Hub id (`facebook/dinov2-base`, read by transformers), or
    several of these joined by `+`.

    kinds: features that it must be able to give · frames: how many of a clip it sees, see `over_frames` · choices:
    patch_layer, blocks, and what the family takes. Raises PrecomputeError for an unknown name, a kind that the encoder
    can't give, and weights that can't be loaded.
    """
    family, identifier = resolve(name)
    usual = ENCODERS[name].choices if name in ENCODERS else {}
    choices = {**usual, **{name: value for name, value in choices.items() if value is not None}}
    encoder = FAMILIES[family](identifier, device=device, dtype=dtype, **choices)
    encoder.name = name
    if frames is not None:
        encoder = over_frames(encoder, frames)
    encoder.require(kinds)
    return encoder


def over_frames(encoder: Encoder, frames: int) -> Encoder:
    """The encoder for this number of frames per clip: an image encoder looks at each of them.

    Raises PrecomputeError when there is none.
    """
    if encoder.modality == "image":
        _import_families()
        return FAMILIES["frames"](inner=encoder, frames=frames)
    return encoder.over_frames(frames)


def load_encoder_like(
    described: Mapping[str, Any],
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    anyway: bool = False,
    moved: str | None = None,
) -> Encoder:
    """Load the encoder that a manifest or an adapter describes.

    dtype: without it, that of the description on a GPU and float32 on a CPU · moved: its name here, if it isn't where
    the description says; for an encoder over frames, that of the encoder inside. Raises PrecomputeError when what is
    found isn't the same encoder (config, weights, layer, preprocessing); with `anyway`, only when more than the weights
    or the config differ.
    """
    if lacking := [field for field in ("name", "library", "id", "fingerprint") if field not in described]:
        raise PrecomputeError(f"the description of the encoder lacks its {lacking[0]}, so that it can't be loaded")
    if dtype is None and not str(device).startswith("cpu"):
        dtype = PRECISIONS.get(described.get("precision", ""))
    layer = described.get("layer") or {}
    name = f"{described['library']}:{described['id']}" if described["id"] else described["library"]
    choices = {"patch_layer": layer.get("patches"), "blocks": layer.get("layers"), **described.get("choices", {})}
    if moved and described["library"] == "frames" and (count := described["id"].partition("/")[0]).isdecimal():
        choices["frames"] = int(count)
    encoder = load_encoder(moved or name, device, dtype, (), **choices)
    encoder.name = described["name"]
    encoder.as_earlier(described)
    if encoder.fingerprint() != described["fingerprint"]:
        _refuse_other(encoder, described, moved, anyway)
    return encoder


def _refuse_other(encoder: Encoder, described: Mapping[str, Any], moved: str | None, anyway: bool) -> None:
    """Raise PrecomputeError for an encoder that isn't the described one, or print a note if that is accepted."""
    now = encoder.describe()
    sentence = (
        f"the encoder at {moved or described['id'] or described['library']} isn't the one these features come from "
        f"(what differs: {differences(now, described)})"
    )
    if not anyway or any(now[part] != described[part] for part in ("class", "preprocessing", "layer", "width")):
        raise PrecomputeError(sentence)
    print(f"note: {sentence}")


def resolve(name: str) -> tuple[str, str]:
    """What was typed -> (family, identifier). Raises PrecomputeError, with the nearest names, for an unknown name."""
    _import_families()
    full = ENCODERS[name].encoder if name in ENCODERS else name
    if name.startswith("demo") and name in ENCODERS and find_folder(full.partition(":")[2]) is None:
        raise PrecomputeError(
            f"the demo's encoder isn't at {full.partition(':')[2]}: clone the project whole, or name another"
        )
    if (found := _family_of(full) or _folder_family(name, full) or _hub_family(full)) is not None:
        return found
    raise unknown_encoder(name, FAMILIES)


def _family_of(full: str) -> tuple[str, str] | None:
    """`family:identifier`, `family` or `name+name`."""
    family, colon, identifier = full.partition(":")
    if "+" in full and family not in (*WRAPPERS, "vectors") and find_folder(full) is None:
        return "fused", full
    if colon and family in FAMILIES:
        return family, identifier
    return (full, "") if full in FAMILIES else None


def _folder_family(name: str, full: str) -> tuple[str, str] | None:
    """A folder, by the config it holds. Raises PrecomputeError when it holds none."""
    if full.startswith("local-dir:"):
        return "open_clip", full.removeprefix("local-dir:")
    folder = find_folder(full)
    if folder is None:
        return None
    if (folder / "open_clip_config.json").is_file():
        return "open_clip", full
    if (folder / "config.json").is_file():
        return _library_of(folder / "config.json"), full
    raise PrecomputeError(f"--encoder {name}: the folder holds neither open_clip_config.json nor config.json")


def _hub_family(full: str) -> tuple[str, str] | None:
    """A name on the Hugging Face Hub."""
    if full.startswith("hf-hub:"):
        return "open_clip", full
    if full.startswith("timm/"):
        return "timm", full.removeprefix("timm/")
    if full.count("/") == 1 and not full.startswith((".", "/", "~")) and all(full.split("/")):
        return "transformers", full
    return None


def _library_of(config: Path) -> str:
    """timm's config.json names an architecture, transformers' a model_type."""
    facts = read_facts(config)
    return "timm" if "architecture" in facts and "model_type" not in facts else "transformers"


def _import_families() -> None:
    folder = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(folder.__path__):
        if module.name != "__main__":
            importlib.import_module(f"{__package__}.{module.name}")
