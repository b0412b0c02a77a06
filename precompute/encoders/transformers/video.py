"""Video encoders through transformers: TimeSformer, VideoMAE, ViViT, V-JEPA 2.

`--resize stretch --normalise clip` prepares the frames as eP-ALM did.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from periscope.errors import PrecomputeError
from periscope.precompute.encoders.base import Encoder
from periscope.precompute.encoders.framing import CHOICES, NORMALS, Framing, framing_of
from periscope.precompute.encoders.transformers.loading import Place, config_of, described, load, load_processor
from periscope.precompute.media import decode_clip


class Clip(Encoder):
    """Base class. A subclass sets `loader`, the transformers class, and describes its tokens.

    patches: hidden_states[patch_layer] without CLS or norm, frame by frame (or pair of frames), row by row, on a grid
    of (frames * rows, columns).
    """

    library = "transformers"
    modality = "video"
    takes = CHOICES
    loader: str
    processor: tuple[str, dict] = ("AutoImageProcessor", {"backend": "pil"})
    cls: int = 0
    patch_size: int
    image_size: int

    def __init__(self, place: Place, **choices: Any):
        super().__init__(place.identifier, **choices)
        self.revision = place.revision
        model = self.load(place)
        config = model.config
        self.note_weights(model)
        self.config = config_of(model)
        self.width, self.depth = config.hidden_size, config.num_hidden_layers
        self.blocks = min(self.blocks, self.depth)
        if not -self.depth - 1 <= self.patch_layer <= -1:
            raise PrecomputeError(f"{self.id} has {self.depth} blocks: patch_layer is from {-self.depth - 1} to -1")
        self.frames, self.tubelet, self.patch_size, self.image_size = self.shape(config)
        self._set_grid()
        self._prepare(place)
        self.model = model.to(self.device, self.dtype)

    def load(self, place: Place) -> Any:
        """The model, in float32."""
        return load(place, self.loader)

    def shape(self, config: Any) -> tuple[int, int, int, int]:
        """(frames, frames per token, side of a patch in pixels, side of a frame in pixels)."""
        return config.num_frames, getattr(config, "tubelet_size", 1), config.patch_size, config.image_size

    def _set_grid(self) -> None:
        side = self.image_size // self.patch_size
        self.grid = (self.frames // self.tubelet * side, side)

    def _prepare(self, place: Place) -> None:
        self._framing: Framing | None = None
        options: dict[str, Any] = {}
        if normal := self.choices.get("normalise"):
            options = dict(zip(("image_mean", "image_std"), NORMALS[normal], strict=True))
        auto, fixed = self.processor
        self._processor = load_processor(place, auto, **fixed, **options)
        self.preprocessing = described(self._processor)
        if resize := self.choices.get("resize"):
            self._framing = framing_of(self._processor, resize, (self.image_size, self.image_size))
            self.preprocessing = self._framing.describe()
        self.preprocessing = {"frames": self.frames, "sampling": "middle of equal parts", **self.preprocessing}

    def over_frames(self, frames: int) -> Encoder:
        """Itself, if that is the number it was trained with; TimeSformer takes others. Raises PrecomputeError."""
        if frames != self.frames:
            raise PrecomputeError(f"--encoder {self.name} takes {self.frames} frames of a clip, not --frames {frames}")
        return self

    def decoder(self) -> Callable[[Any], Any]:
        return partial(decode_clip, frames=self.frames)

    def example(self) -> list[Image.Image]:
        return [super().example()] * self.frames

    def preprocess(self, frames: list[Image.Image]) -> torch.Tensor:
        """Frames -> `(frames, 3, height, width)` float32."""
        if self._framing:
            return torch.stack([self._framing(frame) for frame in frames])
        return self._process([np.asarray(frame) for frame in frames])

    def _process(self, frames: list[np.ndarray]) -> torch.Tensor:
        return self._processor(frames, return_tensors="pt", input_data_format="channels_last")["pixel_values"][0]

    def run(self, pixels: torch.Tensor) -> Any:
        """The library's own forward, with all hidden states."""
        return self.model(pixel_values=pixels, output_hidden_states=True)

    def pool(self, last: torch.Tensor) -> torch.Tensor:
        """The last hidden state, after the final norm -> `(batch, width)`."""
        return last[:, 0] if self.cls else last.mean(1)

    def order(self, patches: torch.Tensor) -> torch.Tensor:
        """The patches in the model's order -> frame by frame."""
        return patches

    def forward(self, pixels: torch.Tensor, kinds: Collection[str]) -> dict[str, torch.Tensor]:
        out = self.run(pixels)
        given = {"patches": self.order(out.hidden_states[self.patch_layer][:, self.cls :])}
        if "pooled" in kinds:
            given["pooled"] = self.pool(out.last_hidden_state)
        if "layers" in kinds:
            last = torch.stack([state[:, 0] for state in out.hidden_states[-self.blocks :]], 1)
            given["layers"] = self.model.layernorm(last)
        return given


class TimeSformer(Clip):
    """https://arxiv.org/abs/2102.05095; for other numbers of frames its time embedding is resized (nearest), as in
    eP-ALM with 16 frames.

    pooled: the CLS after the final norm · layers: the CLS after each of the last blocks, through the final norm.
    """

    loader = "TimesformerModel"
    kinds = frozenset({"pooled", "patches", "layers"})
    cls = 1

    def over_frames(self, frames: int) -> Encoder:
        """This encoder with 1 to 96 frames. Raises PrecomputeError."""
        if not 1 <= frames <= 96:
            raise PrecomputeError(f"--frames is from 1 to 96, not {frames}")
        self.frames = self.model.config.num_frames = frames  # its blocks read it there
        self.choices["frames"] = frames
        self.preprocessing = {**self.preprocessing, "frames": frames}
        self._set_grid()
        return self

    def order(self, patches: torch.Tensor) -> torch.Tensor:
        return (
            patches.unflatten(1, (-1, self.frames)).transpose(1, 2).flatten(1, 2)
        )  # its order is patch by patch, all frames of one together


class VideoMAE(Clip):
    """https://arxiv.org/abs/2203.12602; no CLS. pooled: the mean of the last hidden state."""

    loader = "VideoMAEModel"
    kinds = frozenset({"pooled", "patches"})


class ViViT(Clip):
    """https://arxiv.org/abs/2103.15691. pooled and layers as TimeSformer's."""

    loader = "VivitModel"
    processor = ("AutoImageProcessor", {})  # there is no Pillow version
    kinds = frozenset({"pooled", "patches", "layers"})
    cls = 1

    def load(self, place: Place) -> Any:
        return load(place, self.loader, add_pooling_layer=False)

    def shape(self, config: Any) -> tuple[int, int, int, int]:
        return config.num_frames, config.tubelet_size[0], config.tubelet_size[1], config.image_size


class VJEPA2(Clip):
    """https://arxiv.org/abs/2506.09985; no CLS. pooled: the mean of the last hidden state."""

    loader = "VJEPA2Model"
    processor = ("AutoVideoProcessor", {})
    kinds = frozenset({"pooled", "patches"})

    def shape(self, config: Any) -> tuple[int, int, int, int]:
        return config.frames_per_clip, config.tubelet_size, config.patch_size, config.crop_size

    def _process(self, frames: list[np.ndarray]) -> torch.Tensor:
        return self._processor(np.stack(frames), return_tensors="pt", do_sample_frames=False)["pixel_values_videos"][0]

    def run(self, pixels: torch.Tensor) -> Any:
        return self.model(pixel_values_videos=pixels, skip_predictor=True, output_hidden_states=True)


CLIPS = {"timesformer": TimeSformer, "videomae": VideoMAE, "vivit": ViViT, "vjepa2": VJEPA2}
