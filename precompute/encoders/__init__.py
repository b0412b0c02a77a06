"""Frozen encoders: a registry, and how a name becomes one.

To add an encoder, drop a module into this folder with a class that carries the decorator `register`;
docs/new_encoder.md shows one.
"""

import difflib
import hashlib
import importlib
import json
import os
import pkgutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from PIL import Image

from periscope.errors import MediaError, PrecomputeError
from periscope.precompute.encoders.names import ENCODERS
from periscope.precompute.media import decode_image

PROJECT = Path(__file__).resolve().parents[2]
FAMILIES: dict[str, Callable[..., "Encoder"]] = {}
PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
WRAPPERS = ("frames", "fused")  # families whose identifiers are names of encoders
BY_IDENTIFIER = ("open_clip", "timm", "transformers", *WRAPPERS)  # families that are nothing without an identifier
SAMPLED = 64  # weights per tensor that go into a fingerprint


class Encoder:
    """What an encoder gives. A subclass sets the attributes and has `preprocess` and `forward`; one that doesn't take
    pictures has `decode` and `example` too.

    modality: the media it takes, "image", "audio", "video" or "vector" · kinds: which of "pooled", "patches",
    "layers" · grid: (rows, columns) of the patches, row-major, or None · preprocessing: a dict that says what
    `preprocess` does · model: a torch module, or None · config: what defines the architecture · takes: the names of
    the further choices it understands · usual_layer: `patch_layer` by default · width, image_size, patch_size: for the
    manifest.
    """

    library = "periscope"
    modality: str = "image"
    takes: frozenset[str] = frozenset()
    usual_layer: int = -2
    kinds: frozenset[str] = frozenset({"pooled"})
    grid: tuple[int, int] | None = None
    preprocessing: Mapping = MappingProxyType({})
    config: Mapping = MappingProxyType({})
    model: torch.nn.Module | None = None
    width: int | None = None
    image_size: int | None = None
    patch_size: int | None = None
    revision: str | None = None

    def __init__(
        self,
        identifier: str = "",
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        patch_layer: int | None = None,
        blocks: int | None = None,
        **choices: object,
    ):
        """identifier: what follows the family's name · dtype: of the computation, default float32 · patch_layer:
        which of the hidden states (0: embeddings, -1: after the last block) gives the patches, mostly -2 · blocks:
        how many of the last blocks give `layers`, default 6, fewer in a smaller tower · choices: those of `takes`,
        None where nothing was chosen.

        Raises PrecomputeError for a choice this family doesn't know.
        """
        self.choices = {name: value for name, value in choices.items() if value is not None}
        if strange := sorted(set(self.choices) - self.takes):
            raise PrecomputeError(f"--encoder {identifier or self.library} doesn't take --{strange[0]}")
        self.id, self.device, self.dtype = portable(identifier), torch.device(device), dtype or torch.float32
        self.patch_layer = self.usual_layer if patch_layer is None else patch_layer
        self.blocks = 6 if blocks is None else blocks
        self.name = identifier

    def decode(self, data: bytes) -> object:
        """The bytes of a medium -> what `preprocess` takes. Raises MediaError."""
        return decode_image(data)

    def inputs(self, data: bytes) -> torch.Tensor:
        """The bytes of a medium -> what `forward` takes one of. Raises MediaError, whatever preprocessing chokes on."""
        medium = self.decode(data)
        try:
            return self.preprocess(medium)
        except MediaError:
            raise
        except Exception as error:
            raise MediaError("preprocessing failed", f"{type(error).__name__}: {error}") from error

    def example(self) -> object:
        """Any medium, decoded, to find out shapes with."""
        return Image.new("RGB", (96, 64), "grey")

    def preprocess(self, medium: Image.Image) -> torch.Tensor:
        """A decoded medium (an RGB image) -> what `forward` takes one of: (3, H, W) float32."""
        raise NotImplementedError

    def forward(self, inputs: torch.Tensor, kinds: Collection[str]) -> dict[str, torch.Tensor]:
        """What `preprocess` gave, stacked, on the device: (batch, 3, H, W) -> at least the kinds asked for."""
        raise NotImplementedError

    @torch.no_grad()
    def encode(self, batch: torch.Tensor, kinds: Collection[str]) -> dict[str, torch.Tensor]:
        """(batch, 3, H, W) float32, or what else `preprocess` gives, stacked -> {"pooled": (batch, width), "patches":
        (batch, tokens, width), "layers": (batch, blocks, width)}, those of `kinds`, float32 on the CPU. Raises
        PrecomputeError for a kind it can't give.
        """
        self.require(kinds)
        given = self.forward(batch.to(self.device, self.dtype), kinds)
        return {kind: given[kind].float().cpu() for kind in kinds}

    def to(self, device: str | torch.device) -> None:
        """Move the model to another device; its arithmetic keeps its precision."""
        self.device = torch.device(device)
        if self.model is not None:
            self.model.to(self.device)

    def over_frames(self, frames: int) -> "Encoder":
        """The encoder that takes so many frames of a clip: one of pictures looks at each of them.

        Raises PrecomputeError when it can't be had.
        """
        if self.modality != "image":
            raise PrecomputeError(f"--encoder {self.name} takes {self.modality} media: --frames is for clips")
        from periscope.precompute.encoders.frames import Frames

        return Frames.over(self, frames)

    def require(self, kinds: Collection[str]) -> None:
        """Raise PrecomputeError unless the encoder can give all of `kinds`."""
        for kind in kinds:
            if kind not in self.kinds:
                why = " (it has no CLS token with a final norm)" if kind == "layers" else ""
                raise PrecomputeError(
                    f"encoder {self.name} can't give {kind!r} features{why}, only {_list(self.kinds)}"
                )

    def features(self, kinds: Collection[str]) -> dict[str, dict]:
        """The manifest's "features": kind -> {"shape", "dtype"}, and the "grid" of the patches, found by trying."""
        given = self.encode(self.preprocess(self.example())[None], kinds)
        found = {kind: {"shape": list(given[kind].shape[1:]), "dtype": "float16"} for kind in given}
        if "patches" in found and self.grid:
            found["patches"]["grid"] = list(self.grid)
            if self.grid[0] * self.grid[1] != found["patches"]["shape"][0]:
                raise PrecomputeError(
                    f"encoder {self.name}: {found['patches']['shape'][0]} patches don't fill {self.grid}"
                )
        return found

    def describe(self) -> dict:
        """The manifest's "encoder"."""
        return {
            "name": self.name,
            "library": self.library,
            "id": self.id,
            "revision": self.revision,
            "class": type(self.model).__name__ if self.model is not None else type(self).__name__,
            "layer": {"patches": self.patch_layer, "layers": self.blocks},
            "width": self.width,
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "preprocessing": dict(self.preprocessing),
            "precision": str(self.dtype).removeprefix("torch."),
            "choices": self.choices,
            "fingerprint": self.fingerprint(),
        }

    def fingerprint(self) -> str:
        """sha256 over config, sampled weights, layer and preprocessing: equal only for encoders that give equal
        features.

        The weights are those noted by `note_weights`, before any cast, so that the device and dtype don't matter.
        """
        facts = [
            type(self).__name__,
            dict(self.config),
            getattr(self, "weights", ""),
            self.patch_layer,
            self.blocks,
            dict(self.preprocessing),
            *([self.choices] if self.choices else []),
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()

    def note_weights(self, module: torch.nn.Module) -> None:
        """Remember a hash of up to 64 evenly spaced weights of every tensor of the module, in float32."""
        digest = hashlib.sha256()
        for name, tensor in sorted(module.state_dict().items()):
            flat = tensor.detach().flatten()
            picked = flat[torch.linspace(0, len(flat) - 1, min(SAMPLED, len(flat)), dtype=torch.float64).long()]
            digest.update(f"{name}{list(tensor.shape)}".encode() + picked.float().cpu().numpy().tobytes())
        self.weights = digest.hexdigest()


def register(name: str) -> Callable[[type[Encoder]], type[Encoder]]:
    """Decorator: make a class available as `--encoder name`, and as `--encoder name:identifier`."""

    def add(family: type[Encoder]) -> type[Encoder]:
        if FAMILIES.get(name, family).__qualname__ != family.__qualname__:
            raise ValueError(f"two encoders are called {name!r}")
        family.library = name
        FAMILIES[name] = family
        return family

    return add


def load_encoder(
    name: str,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    kinds: Collection[str] = ("pooled",),
    frames: int | None = None,
    **choices: object,
) -> Encoder:
    """Load an encoder by a short name (`clip-l-336`), `family:identifier` (`open_clip:ViT-B-32-quickgelu/openai`), a
    folder (with open_clip_config.json or config.json), a Hub id (`facebook/dinov2-base`, read by transformers), or
    several of these joined by `+`.

    frames: how many of a clip it shall see, see `Encoder.over_frames` · choices: patch_layer, blocks, and what the
    family takes. Raises PrecomputeError when nothing is called so, when a kind can't be given, and when weights can't
    be had.
    """
    family, identifier = resolve(name)
    usual = ENCODERS[name].choices if name in ENCODERS else {}
    choices = {**usual, **{name: value for name, value in choices.items() if value is not None}}
    encoder = FAMILIES[family](identifier, device=device, dtype=dtype, **choices)
    encoder.name = name
    if frames is not None:
        encoder = encoder.over_frames(frames)
    encoder.require(kinds)
    return encoder


def load_encoder_like(
    described: dict,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    anyway: bool = False,
    moved: str | None = None,
) -> Encoder:
    """Load the encoder that a manifest or an adapter describes.

    dtype: without it, that of the description on a GPU and float32 on a CPU · moved: what it is called here, if it
    isn't where the description says; of an encoder over frames the one that sees them. Raises PrecomputeError when what
    is found isn't the same encoder (config, weights, layer, preprocessing); `anyway`: only when more than its weights
    differs.
    """
    if lacking := [field for field in ("name", "library", "id", "fingerprint") if field not in described]:
        raise PrecomputeError(f"the description of the encoder lacks its {lacking[0]}, so that it can't be loaded")
    if dtype is None and not str(device).startswith("cpu"):
        dtype = PRECISIONS.get(described.get("precision"))
    layer = described.get("layer") or {}
    name = f"{described['library']}:{described['id']}" if described["id"] else described["library"]
    choices = {"patch_layer": layer.get("patches"), "blocks": layer.get("layers"), **described.get("choices", {})}
    if moved and described["library"] == "frames" and (count := described["id"].partition("/")[0]).isdecimal():
        choices["frames"] = int(count)
    encoder = load_encoder(moved or name, device, dtype, (), **choices)
    encoder.name = described["name"]
    if encoder.fingerprint() != described["fingerprint"]:
        now = encoder.describe()
        differs = [part for part in ("class", "preprocessing") if now[part] != described[part]] or ["weights or config"]
        other = (
            f"the encoder at {moved or described['id'] or described['library']} isn't the one these features come from "
            f"({', '.join(differs)} differ)"
        )
        if not anyway or any(now[part] != described[part] for part in ("class", "preprocessing", "layer", "width")):
            raise PrecomputeError(other)
        print(f"note: {other}")
    return encoder


def resolve(name: str) -> tuple[str, str]:
    """What was typed -> (family, identifier). Raises PrecomputeError with the nearest names when nothing is called
    so.
    """
    _import_families()
    full = ENCODERS[name].encoder if name in ENCODERS else name
    if name.startswith("demo") and name in ENCODERS and find_folder(full.partition(":")[2]) is None:
        raise PrecomputeError(
            f"the demo's encoder isn't at {full.partition(':')[2]}: clone the project whole, or name another"
        )
    family, colon, identifier = full.partition(":")
    if "+" in full and family not in (*WRAPPERS, "vectors") and find_folder(full) is None:
        return "fused", full
    if colon and family in FAMILIES:
        return family, identifier
    if full in FAMILIES:
        return full, ""
    if full.startswith("local-dir:"):
        return "open_clip", full.removeprefix("local-dir:")
    if (folder := find_folder(full)) is not None:
        if (folder / "open_clip_config.json").is_file():
            return "open_clip", full
        if (folder / "config.json").is_file():
            return _library_of(folder / "config.json"), full
        raise PrecomputeError(f"--encoder {name}: the folder holds neither open_clip_config.json nor config.json")
    if full.startswith("hf-hub:"):
        return "open_clip", full
    if full.startswith("timm/"):
        return "timm", full.removeprefix("timm/")
    if full.count("/") == 1 and not full.startswith((".", "/", "~")) and all(full.split("/")):
        return "transformers", full
    known = [*ENCODERS, *(family for family in FAMILIES if family not in BY_IDENTIFIER)]
    near = difflib.get_close_matches(name, known, 3, 0.4)
    nearest = f"nearest: {_list(near)}; " if near else ""
    raise PrecomputeError(
        f"no encoder is called {name!r}; {nearest}known: {_list(known)}; or open_clip:ARCHITECTURE/TAG, a Hub id like "
        "facebook/dinov2-base, or a folder"
    )


def find_folder(identifier: str) -> Path | None:
    """A folder by its path as given, or relative to the project (so that the demo is found from anywhere)."""
    for folder in (Path(os.path.expanduser(identifier)), PROJECT / identifier):
        if identifier and folder.is_dir():
            return folder
    return None


def _library_of(config: Path) -> str:
    """timm's config.json names an architecture, transformers' a model_type."""
    try:
        facts = json.loads(config.read_text())
    except (OSError, ValueError):
        facts = {}
    return (
        "timm" if isinstance(facts, dict) and "architecture" in facts and "model_type" not in facts else "transformers"
    )


def portable(identifier: str) -> str:
    """A folder relative to the project where it lies inside, else absolute; anything else as it is."""
    folder = find_folder(identifier)
    if folder is None:
        return identifier
    folder = folder.resolve()
    return folder.relative_to(PROJECT).as_posix() if folder.is_relative_to(PROJECT) else str(folder)


def _import_families() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def _list(names: Collection[str]) -> str:
    return ", ".join(sorted(names) if isinstance(names, frozenset) else names)
