"""What a set's entries say of its features, and the tensors that follow from them. Imports no torch.

An *entry* is the manifest's description of a kind: "shape" and "dtype" as read, "codec" (default "fp16"), the "grid" of
patches after pooling, "pool" [rows, columns] if patches were averaged, "views" if there are several per medium, and
then the "augmentation" of all but the first.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from math import prod

from periscope.errors import FeatureSetError

KINDS = ("pooled", "patches", "layers")
CODECS = ("fp16", "int8", "int4")
CHANNELS, GROUPS = ".channels", ".groups"  # ends of the names of tensors that hold scales
GROUP = {"int8": 128, "int4": 32}
FEW = 32  # with fewer tokens than this, one scale for the sample stands in for those by channel
ITEM_BYTES = {"F16": 2, "I8": 1, "U8": 1}  # by safetensors dtype


def coded_layout(codec: str, shape: Sequence[int]) -> dict[str, tuple[str, list[int]]]:
    """The stored tensors for features of this shape: suffix of the tensor's name -> (safetensors dtype, shape)."""
    *tokens, width = shape
    if codec == "fp16":
        return {"": ("F16", list(shape))}
    return {
        "": ("I8", list(shape)) if codec == "int8" else ("U8", [*tokens, -(-width // 2)]),
        CHANNELS: ("U8", [width if prod(tokens) >= FEW else 1]),
        GROUPS: ("U8", [*tokens, -(-width // GROUP[codec])]),
    }


def layout(kind: str, entry: Mapping) -> dict[str, tuple[str, list[int]]]:
    """The tensors of one medium in a shard: name -> (safetensors dtype, shape). Views are the first axis."""
    views = [entry["views"]] if "views" in entry else []
    forms = coded_layout(entry.get("codec", "fp16"), entry["shape"])
    return {kind + suffix: (dtype, views + shape) for suffix, (dtype, shape) in forms.items()}


def stored_bytes(entry: Mapping) -> int:
    """Bytes of one medium's tensors in a shard."""
    forms = layout("", entry).values()
    return sum(ITEM_BYTES[dtype] * prod(shape) for dtype, shape in forms)


def missing_kind(features: object, kinds: Iterable[str], kind: str) -> str:
    """The sentence for a set of these kinds that is to give another."""
    have = list(kinds)
    return (
        f"{features} holds {', '.join(have)}, not {kind}; encode again with --kinds {kind}, "
        f"or choose an adapter that reads {' or '.join(have)}"
    )


def check_storage(store: Sequence[str], pool: str) -> None:
    """Raise FeatureSetError for a codec, a kind or a pool that no set has."""
    for asked in store:
        kind, equals, codec = asked.rpartition("=")
        if codec not in CODECS or (equals and kind not in KINDS):
            raise FeatureSetError(_impossible(asked, KINDS))
    parse_pool(pool)


def _impossible(asked: str, kinds: Iterable[str]) -> str:
    return (
        f"--store {asked} isn't possible: it takes {', '.join(CODECS)}, or KIND=CODEC with one of the kinds "
        f"{', '.join(kinds)}"
    )


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
            raise FeatureSetError(_impossible(asked, entries))
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
