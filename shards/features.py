"""The kinds of features, and how they are stored: pooled, then coded as float16, int8 or int4.

An *entry* is the manifest's description of a kind: "shape" and "dtype" as read, "codec" (default "fp16"), the "grid" of
patches after pooling, "pool" [rows, columns] if patches were averaged, "views" if there are several per medium, and
then the "augmentation" of all but the first.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch

from periscope.errors import FeatureSetError
from periscope.shards import codecs
from periscope.shards.codecs import CODECS, FP16_LARGEST

KINDS = ("pooled", "patches", "layers")
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


def layout(kind: str, entry: Mapping) -> dict[str, tuple[str, list[int]]]:
    """The tensors of one medium in a shard: name -> (safetensors dtype, shape). Views are the first axis."""
    views = [entry["views"]] if "views" in entry else []
    forms = codecs.layout(entry.get("codec", "fp16"), entry["shape"])
    return {kind + suffix: (dtype, views + shape) for suffix, (dtype, shape) in forms.items()}


def stored_bytes(entry: Mapping) -> int:
    """Bytes of one medium's tensors in a shard."""
    forms = layout("", entry).values()
    return sum(STORED_DTYPES[dtype].itemsize * prod(shape) for dtype, shape in forms)


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


def settle_storage(features: Mapping[str, Mapping], store: Sequence[str] = (), pool: str = "1x1") -> dict[str, dict]:
    """Entries of an encoder (or a set) -> entries with the storage asked for.

    store: "int8" applies to patches, if there are any; "patches=int4" names a kind · pool: "2x2", for patches, on top
    of the pool that an entry has. Raises FeatureSetError for what isn't possible.
    """
    entries = {kind: dict(entry) for kind, entry in features.items()}
    for asked in store:
        kind, equals, codec = asked.rpartition("=")
        kinds = [kind] if equals else [kind for kind in ("patches",) if kind in entries] or list(entries)
        if codec not in CODECS or kinds[0] not in entries:
            raise FeatureSetError(
                f"--store {asked} isn't possible: it takes {', '.join(CODECS)}, or KIND=CODEC with one of the kinds "
                f"{', '.join(entries)}"
            )
        for kind in kinds:
            entries[kind]["codec"] = codec
    for entry in entries.values():
        entry.setdefault("codec", "fp16")
    if (factors := parse_pool(pool)) != (1, 1):
        entries = {kind: _pooled(entry, factors) if kind == "patches" else entry for kind, entry in entries.items()}
        if "patches" not in entries:
            raise FeatureSetError(f"--pool {pool} averages patches, and these kinds have none: {', '.join(entries)}")
    return entries


def parse_pool(pool: str) -> tuple[int, int]:
    """'2x2' -> (2, 2). Raises FeatureSetError for anything else."""
    if not re.fullmatch(r"[1-9]\d{0,3}[x×][1-9]\d{0,3}", pool.lower()):
        raise FeatureSetError(f"--pool {pool} isn't ROWSxCOLUMNS, as in 2x2 (1x1: off)")
    rows, columns = re.split("[x×]", pool.lower())
    return int(rows), int(columns)


def _pooled(entry: Mapping, factors: tuple[int, int]) -> dict:
    grid = entry.get("grid")
    if not grid:
        raise FeatureSetError("--pool needs patches that lie in a grid, and this encoder's don't")
    if any(n % factor for n, factor in zip(grid, factors, strict=True)):
        fitting = [f"{n}x{n}" for n in range(2, min(grid) + 1) if all(side % n == 0 for side in grid)]
        fitting = fitting or [f"{n}x1" for n in range(2, grid[0] + 1) if grid[0] % n == 0]
        fitting = fitting or [f"1x{n}" for n in range(2, grid[1] + 1) if grid[1] % n == 0]
        raise FeatureSetError(
            f"--pool {factors[0]}x{factors[1]} doesn't divide the grid of {grid[0]} x {grid[1]} patches; "
            f"what does: {', '.join(fitting) or 'nothing'}"
        )
    grid = [n // factor for n, factor in zip(grid, factors, strict=True)]
    pool = [n * factor for n, factor in zip(entry.get("pool", (1, 1)), factors, strict=True)]
    return {**entry, "shape": [grid[0] * grid[1], entry["shape"][-1]], "grid": grid, "pool": pool}


def describe(entry: Mapping) -> str:
    """For people: '81 x 1152 int8, grid 9 x 9, pooled 3x3'."""
    words = f"{' x '.join(map(str, entry['shape']))} {entry.get('codec', 'fp16')}"
    if "grid" in entry:
        words += f", grid {entry['grid'][0]} x {entry['grid'][1]}"
    if "pool" in entry:
        words += f", pooled {entry['pool'][0]}x{entry['pool'][1]}"
    if "views" in entry:
        words += f", {entry['views']} views"
    return words
