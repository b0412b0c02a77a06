"""Several image encoders as one: `dinov2-l+siglip-so400m-384`."""

import itertools
import math
from collections.abc import Collection
from typing import Any

import torch
from PIL import Image

from periscope.errors import PrecomputeError
from periscope.precompute.encoders.base import Encoder
from periscope.precompute.encoders.registry import load_encoder, register


@register("fused")
class Fused(Encoder):
    """identifier: `NAME+NAME`. Each encoder preprocesses the image in its own way, at its own size.

    patches: concatenated along the channels, in order, if the grids are equal · pooled: all vectors concatenated.
    """

    def __init__(self, identifier: str = "", device: str = "cpu", dtype: torch.dtype | None = None, **choices: Any):
        names = identifier.split("+")
        if len(names) < 2 or not all(names):
            raise PrecomputeError(f"--encoder fused:{identifier}: write NAME+NAME, as in dinov2-l+siglip-so400m-384")
        if choices.get("cls_token"):
            raise PrecomputeError(f"--cls-token: {identifier} joins patches, and not every encoder has a CLS token")
        parts = self.parts = [load_encoder(name, device, dtype, (), **choices) for name in names]
        if strange := [part for part in parts if part.modality != "image"]:
            raise PrecomputeError(f"--encoder {strange[0].name} takes {strange[0].modality} media: only pictures fuse")
        if len({part.patch_layer for part in parts}) > 1:
            raise PrecomputeError(f"--encoder {identifier}: pass --layer, because their usual layers differ")
        first = parts[0]
        self.device, self.dtype, self.patch_layer = torch.device(device), first.dtype, first.patch_layer
        self.blocks = max(part.blocks for part in parts)
        self.choices = first.choices
        self.id = "+".join(f"{part.library}:{part.id}" if part.id else part.library for part in parts)
        self.name = identifier
        self.grid = first.grid
        same = all(part.grid == first.grid and "patches" in part.kinds for part in parts)
        pooled = all("pooled" in part.kinds for part in parts)
        self.kinds = frozenset({"patches"} if same else ()) | frozenset({"pooled"} if pooled else ())
        self.model = torch.nn.ModuleList([part.model for part in parts if part.model is not None])
        self.width = sum(part.width or 0 for part in parts)
        self.image_size, self.patch_size = first.image_size, first.patch_size
        self.preprocessing = {str(place): dict(part.preprocessing) for place, part in enumerate(parts)}
        self.config = {"encoders": [part.fingerprint() for part in parts]}
        self._shapes = [tuple(part.preprocess(part.example()).shape) for part in parts]

    def require(self, kinds: Collection[str]) -> None:
        """Raise PrecomputeError unless the encoder gives all of `kinds`, naming the grids when they differ."""
        if "patches" in kinds and "patches" not in self.kinds:
            grids = ", ".join(f"{part.name} {'x'.join(map(str, part.grid or ('none',)))}" for part in self.parts)
            raise PrecomputeError(
                f"patches can't be joined, because their grids differ ({grids}): take encoders with the same number of "
                "patches (a timm one can be given another size, as in timm:NAME@384), or --kinds pooled"
            )
        super().require(kinds)

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """An RGB image -> the inputs of all encoders, flattened and concatenated."""
        return torch.cat([part.preprocess(image).flatten() for part in self.parts])

    def forward(self, inputs: torch.Tensor, kinds: Collection[str]) -> dict[str, torch.Tensor]:
        ends = list(itertools.accumulate(math.prod(shape) for shape in self._shapes))
        pieces = torch.tensor_split(inputs, ends[:-1], 1)
        given = [
            part.forward(piece.unflatten(1, shape), kinds)
            for part, piece, shape in zip(self.parts, pieces, self._shapes, strict=True)
        ]
        return {kind: torch.cat([one[kind] for one in given], -1) for kind in kinds}
