"""Any image encoder, applied to the frames of a clip."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from PIL import Image

from periscope.errors import PrecomputeError
from periscope.precompute.encoders.base import Encoder
from periscope.precompute.encoders.registry import load_encoder, register
from periscope.precompute.media import decode_clip

MOST = 512  # frames per clip; more would exceed any language model's context


@register("frames")
class Frames(Encoder):
    """identifier: `8/NAME`, the number of frames and an image encoder.

    pooled and layers: mean over the frames · patches: those of all frames in order, on a grid of (frames * rows,
    columns).
    """

    modality = "video"

    def __init__(
        self,
        identifier: str = "",
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        inner: Encoder | None = None,
        frames: int = 0,
        **choices: Any,
    ):
        """inner, frames: a loaded image encoder and the number of frames, in place of an identifier. Raises
        PrecomputeError for an encoder of other media and for an impossible number.
        """
        if inner is None:
            number, _, name = identifier.partition("/")
            if not number.isdigit() or not name:
                raise PrecomputeError(f"--encoder frames:{identifier}: write frames:8/NAME, as in frames:8/clip-l-336")
            inner, frames = load_encoder(name, device, dtype, (), **choices), int(number)
        self._look_through(inner, frames)

    def _look_through(self, inner: Encoder, frames: int) -> None:
        if inner.modality != "image":
            raise PrecomputeError(f"--encoder {inner.name} takes {inner.modality} media, not the frames of a clip")
        if not 1 <= frames <= MOST:
            raise PrecomputeError(f"--frames is from 1 to {MOST}, not {frames}")
        self.inner, self.frames = inner, frames
        for fact in ("device", "dtype", "patch_layer", "blocks", "kinds", "model", "width", "image_size", "patch_size"):
            setattr(self, fact, getattr(inner, fact))
        self.choices, self.revision = inner.choices, inner.revision
        self.id = f"{frames}/{inner.library}:{inner.id}" if inner.id else f"{frames}/{inner.library}"
        self.name = f"{frames} frames of {inner.name}"
        self.grid = (frames * inner.grid[0], inner.grid[1]) if inner.grid else None
        self.preprocessing = {"frames": frames, "sampling": "middle of equal parts", **inner.preprocessing}
        self.config = {"frames": frames, "encoder": inner.fingerprint()}

    def over_frames(self, frames: int) -> "Frames":
        """The same image encoder, over another number of frames."""
        return Frames(inner=self.inner, frames=frames)

    def operations(self) -> int:
        return self.frames * self.inner.operations()

    def decoder(self) -> Callable[[Any], Any]:
        return partial(decode_clip, frames=self.frames)

    def example(self) -> list[Image.Image]:
        return [self.inner.example()] * self.frames

    def preprocess(self, medium: list[Image.Image]) -> torch.Tensor:
        """Frames -> `(frames, 3, height, width)` float32."""
        return torch.stack([self.inner.preprocess(frame) for frame in medium])

    def forward(self, inputs: torch.Tensor, kinds: Collection[str]) -> dict[str, torch.Tensor]:
        given = self.inner.forward(inputs.flatten(0, 1), kinds)
        frames = {kind: given[kind].unflatten(0, (len(inputs), self.frames)) for kind in kinds}
        return {kind: each.flatten(1, 2) if kind == "patches" else each.mean(1) for kind, each in frames.items()}
