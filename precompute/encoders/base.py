"""What an encoder is: the base class of all encoders."""

import hashlib
import json
import math
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from periscope.errors import MachineError, MediaError, PrecomputeError
from periscope.precompute.encoders.folders import portable
from periscope.precompute.media import decode_image
from periscope.precompute.media.file import check_machine
from periscope.precompute.media.limits import NO_MEMORY

SAMPLED = 64  # weights per tensor that go into a fingerprint
UNPREPARED = "preprocessing failed"  # reason
LAST_BLOCKS = 6  # blocks whose CLS makes `layers`, by default
Prepared = TypeVar("Prepared")


class Encoder:
    """A frozen encoder. A subclass sets the attributes below and defines `preprocess` and `forward`; one that takes
    other media than images also defines `decode` and `example`.

    modality: the media it takes, "image", "audio", "video", "imu" or "vector" · kinds: which of "pooled", "patches",
    "layers" it gives · grid: (rows, columns) of the patches, row-major, or None · preprocessing: describes `preprocess`
    · model: a torch module, or None · config: what defines the architecture · takes: names of the further choices it
    understands · usual_layer: default of `patch_layer` · width, image_size, patch_size: for the manifest.
    """

    library = "periscope"
    modality: str = "image"
    takes: frozenset[str] = frozenset()
    usual_layer: int = -2
    convolutional: bool = False  # its patches are the cells of its last feature map
    kinds: frozenset[str] = frozenset({"pooled"})
    grid: tuple[int, int] | None = None
    preprocessing: Mapping[str, Any] = MappingProxyType({})
    config: Mapping[str, Any] = MappingProxyType({})
    model: Any = None  # a torch.nn.Module; each library's has methods of its own
    width: int | None = None
    image_size: int | None = None
    patch_size: int | None = None
    revision: str | None = None
    weights: str = ""  # a hash of them, see `note_weights`

    def __init__(
        self,
        identifier: str = "",
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        patch_layer: int | None = None,
        blocks: int | None = None,
        **choices: Any,
    ):
        """identifier: what follows the family's name · dtype: of the computation, float32 by default · patch_layer:
        hidden state that gives the patches (0: embeddings, -1: after the last block), usually -2 · blocks: how many of
        the last blocks give `layers`, 6 by default, fewer in a smaller encoder · choices: those named in `takes`; None
        where nothing was chosen.

        Raises PrecomputeError for a choice this family doesn't know.
        """
        self.choices = {name: value for name, value in choices.items() if value is not None}
        if unknown := sorted(set(self.choices) - self.takes):
            raise PrecomputeError(f"--encoder {identifier or self.library} doesn't take --{unknown[0]}")
        self.id, self.device, self.dtype = portable(identifier), torch.device(device), dtype or torch.float32
        self.patch_layer = self.usual_layer if patch_layer is None else patch_layer
        self.blocks = LAST_BLOCKS if blocks is None else blocks
        self.name = identifier

    def decoder(self) -> Callable[[Any], Any] | None:
        """What turns the bytes of a medium into what `preprocess` takes, an RGB image: a function at the top level of a
        module, or a partial of one, which is called in a worker process and raises MediaError. None: `decode` is called
        in this process.
        """
        return decode_image if type(self).decode is Encoder.decode else None

    def decode(self, data: Any) -> Any:
        """The bytes of a medium -> what `preprocess` takes, decoded in this process. Raises MediaError."""
        decoder = self.decoder()
        if decoder is None:
            raise NotImplementedError
        return decoder(data)

    def inputs(self, data: bytes | Image.Image | np.ndarray) -> torch.Tensor:
        """The bytes of a medium (for an image encoder also an image, see `decode_image`) -> one input of `forward`.

        Raises MediaError, also for what preprocessing raises.
        """
        if not isinstance(data, bytes) and self.modality != "image":
            raise MediaError(
                "not a medium", f"{self.name} takes {self.modality} files, and this is of type {type(data).__name__}"
            )
        return self.preprocessed(self.decode(data))

    def preprocessed(self, medium: Any) -> torch.Tensor:
        """As `preprocess`. Raises MediaError for whatever that raises."""
        return preprocessing(lambda: self.preprocess(medium))

    def example(self) -> Any:
        """A decoded medium to find out shapes with."""
        return Image.new("RGB", (96, 64), "grey")

    def preprocess(self, medium: Any) -> torch.Tensor:
        """A decoded medium (an RGB image) -> one input of `forward`: `(3, height, width)` float32."""
        raise NotImplementedError

    def forward(self, inputs: torch.Tensor, kinds: Collection[str]) -> dict[str, torch.Tensor]:
        """Stacked inputs on the device, `(batch, 3, height, width)` -> features of at least `kinds`."""
        raise NotImplementedError

    @torch.no_grad()
    def encode(self, batch: torch.Tensor, kinds: Collection[str]) -> dict[str, torch.Tensor]:
        """Stacked inputs, `(batch, 3, height, width)` float32 or whatever `preprocess` gives -> {"pooled": `(batch,
        width)`, "patches": `(batch, tokens, width)`, "layers": `(batch, blocks, width)`}, those of `kinds`, float32 on
        the CPU. Raises PrecomputeError for a kind that the encoder can't give.
        """
        self.require(kinds)
        features = self.forward(batch.to(self.device, self.dtype), kinds)
        return {kind: features[kind].float().cpu() for kind in kinds}

    def as_earlier(self, described: Mapping[str, Any]) -> bool:
        """Compute as the earlier version did that wrote this description (see `describe`), where later ones compute
        something else; whether that makes a difference.
        """
        return False

    def operations(self) -> int:
        """About how many multiplications an input takes: each weight once for each patch. 0: not known."""
        if not isinstance(self.model, torch.nn.Module):
            return 0
        if self.grid:
            patches = math.prod(self.grid)
        else:
            patches = (self.image_size // self.patch_size) ** 2 if self.image_size and self.patch_size else 1
        return patches * sum(weight.numel() for weight in self.model.parameters())

    def to(self, device: str | torch.device) -> None:
        """Move the model to another device; its dtype stays."""
        self.device = torch.device(device)
        if self.model is not None:
            self.model.to(self.device)

    def keep_cls(self, has_cls: bool) -> bool:
        """Whether the CLS token stands in front of the patches, as was chosen: they then lie on no grid.

        Raises PrecomputeError for an encoder without one.
        """
        kept = bool(self.choices.get("cls_token"))
        if kept and not has_cls:
            raise PrecomputeError(f"--cls-token: {self.id} has no CLS token")
        if kept:
            self.grid = None
        return kept

    def over_frames(self, frames: int) -> "Encoder":
        """The encoder for this number of frames per clip. Raises PrecomputeError when there is none.

        `registry.over_frames` also puts an image encoder over frames.
        """
        raise PrecomputeError(f"--encoder {self.name} takes {self.modality} media: --frames is for clips")

    def require(self, kinds: Collection[str]) -> None:
        """Raise PrecomputeError unless the encoder gives all of `kinds`."""
        for kind in kinds:
            if kind not in self.kinds:
                why = " (it has no CLS token with a final norm)" if kind == "layers" else ""
                if why and self.convolutional:
                    why = " (a convolutional network has no CLS token)"
                raise PrecomputeError(
                    f"encoder {self.name} can't give {kind!r} features{why}, only {', '.join(sorted(self.kinds))}"
                )

    def features(self, kinds: Collection[str]) -> dict[str, dict]:
        """The manifest's "features", from encoding an example: kind -> {"shape", "dtype"}, with the "grid" of patches.

        Raises PrecomputeError when the patches don't fill the grid.
        """
        features = self.encode(self.preprocess(self.example())[None], kinds)
        entries: dict[str, dict] = {
            kind: {"shape": list(features[kind].shape[1:]), "dtype": "float16"} for kind in features
        }
        if "patches" in entries and self.grid:
            entries["patches"]["grid"] = list(self.grid)
            tokens = entries["patches"]["shape"][0]
            if self.grid[0] * self.grid[1] != tokens:
                raise PrecomputeError(f"encoder {self.name}: {tokens} patches don't fill {self.grid}")
        return entries

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
            "weights": self.weights,
            "fingerprint": self.fingerprint(),
        }

    def fingerprint(self) -> str:
        """sha256 of the class, config, sampled weights, layers and preprocessing: equal only for encoders that give
        equal features.

        The weights are those noted by `note_weights`, before any cast, so device and dtype don't matter.
        """
        facts = [
            type(self).__name__,
            dict(self.config),
            self.weights,
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


def preprocessing(prepare: Callable[[], Prepared]) -> Prepared:
    """What `prepare` gives. Raises MachineError, and MediaError when it fails twice: a library also fails when two
    threads get into one another's way in it, which is no medium's fault.
    """
    with suppress(Exception):
        return prepare()
    try:
        return prepare()
    except (MediaError, MachineError):
        raise
    except Exception as error:
        check_machine(error, "what the encoder's preprocessing opens")
        said = f"{type(error).__name__}: {error}"
        short = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in said
        raise MediaError(NO_MEMORY if short else UNPREPARED, said) from error


def tokens_of(maps: torch.Tensor) -> torch.Tensor:
    """Feature maps `(batch, width, rows, columns)` -> `(batch, rows * columns, width)`, row by row."""
    return maps.flatten(2).transpose(1, 2)


def last_map_only(identifier: str, layer: int | None) -> int:
    """The `patch_layer` of an encoder whose stages have grids of different sizes: -1.

    Raises PrecomputeError for another one.
    """
    if layer not in (None, -1):
        raise PrecomputeError(f"{identifier} gives the feature map of its last stage only, not --layer {layer}")
    return -1
