"""The kinds of features, and how they are stored: pooled, then coded as float16, int8 or int4; see `shards.layout`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from periscope.errors import FeatureSetError
from periscope.shards import codecs
from periscope.shards.codecs import FP16_LARGEST

STORED_DTYPES = {"F16": torch.float16, "I8": torch.int8, "U8": torch.uint8}


def encode_fp16(features: torch.Tensor) -> torch.Tensor:
    """An encoder's output (any shape, any float dtype) -> contiguous float16 on the CPU.

    Raises FeatureSetError, its message beginning with the short reason and a colon, when a value is NaN or infinite
    ("not finite") or becomes infinite in float16 ("beyond float16").
    """
    if not torch.isfinite(features).all():
        raise FeatureSetError("not finite: the encoder gave NaN or infinity")
    stored = features.detach().to("cpu", torch.float16).contiguous()
    if not torch.isfinite(stored).all():
        largest = features.abs().max().item()
        raise FeatureSetError(f"beyond float16: the largest value is {largest:.4g}, float16 ends at {FP16_LARGEST:g}")
    return stored


def encode(kind: str, features: torch.Tensor, entry: Mapping) -> dict[str, torch.Tensor]:
    """An encoder's features of one medium -> the tensors of `layout`; patches are pooled here, views come first.

    Starts from float16, so that a recoded set equals one that was encoded this way. Raises FeatureSetError as
    `encode_fp16`.
    """
    half = _pool(encode_fp16(features), entry)
    codec = entry.get("codec", "fp16")
    if "views" not in entry:
        return {kind + suffix: tensor for suffix, tensor in codecs.encode(codec, half).items()}
    views = [codecs.encode(codec, view) for view in half]
    return {kind + suffix: torch.stack([view[suffix] for view in views]) for suffix in views[0]}


@dataclass(frozen=True)
class CodedFeatures:
    """Features of several media as they are stored, to be decoded where they are needed: half or a quarter of the bytes
    to copy, and a GPU decodes them in no time. stored: name of `layout` -> one view of each medium, stacked.
    """

    kind: str
    entry: Mapping
    stored: dict[str, torch.Tensor]

    def __len__(self) -> int:
        return len(self.stored[self.kind])

    def pick(self, media: Sequence[int]) -> "CodedFeatures":
        """Those of some of the media."""
        return replace(self, stored={name: tensor[torch.tensor(media).long()] for name, tensor in self.stored.items()})

    def pin_memory(self) -> "CodedFeatures":
        """Page-lock them, so that the copy to a GPU is asynchronous."""
        return replace(self, stored={name: tensor.pin_memory() for name, tensor in self.stored.items()})

    def decode(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """`(media, *shape)` float16 on the device."""
        if not len(self):
            return torch.empty((0, *self.entry["shape"]), dtype=torch.float16, device=device)
        stored = {name: tensor.to(device, non_blocking=True) for name, tensor in self.stored.items()}
        return decode(self.kind, stored, self.entry)


def decode(kind: str, stored: Mapping[str, torch.Tensor], entry: Mapping) -> torch.Tensor:
    """Tensors of `layout`, one view of each of several media, stacked -> `(batch, *shape)` float16."""
    mine = {name.removeprefix(kind): tensor for name, tensor in stored.items()}
    return codecs.decode(entry.get("codec", "fp16"), mine, entry["shape"])


def round_trip(features: torch.Tensor, entry: Mapping | None = None) -> torch.Tensor:
    """One medium's features as read back from a shard. Without an entry: float16, unpooled, any shape.

    Raises as `encode_fp16`.
    """
    if entry is None:
        return encode_fp16(features)
    stored = encode("", features, {name: value for name, value in entry.items() if name != "views"})
    return codecs.decode(
        entry.get("codec", "fp16"), {name: tensor[None] for name, tensor in stored.items()}, entry["shape"]
    )[0]


def _pool(features: torch.Tensor, entry: Mapping) -> torch.Tensor:
    """(..., tokens, width) float16 -> fewer tokens, each the mean of a rectangle of the grid."""
    if "pool" not in entry:
        return features
    (rows, columns), (high, wide) = entry["grid"], entry["pool"]
    *views, _, width = features.shape
    cells = features.float().view(*views, rows, high, columns, wide, width)
    return cells.mean((-4, -2)).reshape(*views, rows * columns, width).half()
