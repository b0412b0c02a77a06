"""Ready-made vectors: arrays in .npy (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html) or
.safetensors (https://huggingface.co/docs/safetensors), computed by any program.

A single file is an array of n rows, one medium each: `vectors.npy/000012` is row 12, and line 13 of `vectors.txt` is
its caption. In a folder each file is one medium, with captions in a `.txt` of the same name. A .safetensors with
several tensors holds one medium per tensor, called `file.safetensors/name`. A medium is a vector `(width,)` or patches
`(tokens, width)`; leading axes of length 1 are dropped.
"""

import io
import math
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from periscope.errors import MediaError
from periscope.precompute.media.npy import check_numbers
from periscope.precompute.media.stored_arrays import arrays_in, read_array
from periscope.precompute.sources import Medium, Problem, Record, Words, source
from periscope.precompute.sources.conversations import caption
from periscope.precompute.sources.data_folder import DataFolder
from periscope.precompute.sources.sidecars import Sidecars

SUFFIXES = (".npy", ".safetensors")
# Rows of one array. Each is a medium with a name, half a kilobyte of memory: of narrow ones more than the file itself.
MOST_ROWS, MOST_NARROW_ROWS, WIDE = 10_000_000, 1_000_000, 256


def payload(array: np.ndarray) -> bytes:
    """An array as the bytes of a .npy file in float32: what `Medium.read` gives for a vector.

    Raises MediaError unless its dtype is floating-point.
    """
    array = np.asarray(array)
    check_numbers(array.dtype.kind == "f", array.shape, str(array.dtype))
    while array.ndim > 1 and len(array) == 1:
        array = array[0]
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array, dtype=np.float32), allow_pickle=False)
    return stream.getvalue()


def read_vector(name: str, row: int | None, path: Path) -> bytes:
    """The `payload` of one row (None: all) of the array in a file. name: of the tensor in a .safetensors.

    Raises MediaError when it can't be read.
    """
    return payload(read_array(path, name, row))


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays in a file, by name ("" for a .npy). Raises MediaError, also for arrays without numbers,
    of which a few bytes can claim a million million rows.
    """
    found = {name: array.shape if array.dtype.itemsize else (0,) for name, array in arrays_in(path).items()}
    if empty := [name for name, shape in found.items() if 0 in shape]:
        raise MediaError("empty array", empty[0])
    return found


def row_at(data: DataFolder, origin: str) -> Medium | None:
    """The medium that such an origin names; None for anything else."""
    name = next((origin[: at + len(end)] for end in SUFFIXES if (at := origin.lower().find(end)) >= 0), None)
    if name is None or ".." in origin.split("/") or name.startswith("/") or not os.path.isfile(data.root / name):
        return None
    if not data.inside(name):
        return None
    path = data.root / name
    inside = origin[len(name) + 1 :]
    try:
        held = shapes(path)
    except MediaError:
        return None
    if inside in held:
        return Medium(path, origin, "vector", partial(read_vector, inside, None))
    if len(held) != 1:
        return None
    ((only, shape),) = held.items()
    if not inside:
        return Medium(path, origin, "vector", partial(read_vector, only, None))
    if inside.isdecimal() and len(shape) > 1 and int(inside) < shape[0]:
        return Medium(path, f"{name}/{int(inside):06d}", "vector", partial(read_vector, only, int(inside)))
    return None


def vectors_below(data: DataFolder) -> Iterator[Medium | Problem]:
    """All media of this kind among the given files, or in the folder."""
    files = data.listed(*SUFFIXES)
    for name in files:
        path = data.root / name
        try:
            held = shapes(path)
        except MediaError as error:
            yield Problem(name, error.reason, error.detail)
            continue
        if len(held) > 1:
            for inside in held:
                yield Medium(path, f"{name}/{inside}", "vector", partial(read_vector, inside, None))
            continue
        for inside, shape in held.items():
            if len(files) == 1 and len(shape) > 1:
                if shape[0] > (MOST_ROWS if math.prod(shape[1:]) >= WIDE else MOST_NARROW_ROWS):
                    yield Problem(name, "too many rows", f"{shape[0]:,} of {math.prod(shape[1:]):,} numbers: split it")
                    continue
                for row in range(shape[0]):
                    yield Medium(path, f"{name}/{row:06d}", "vector", partial(read_vector, inside, row))
            else:
                yield Medium(path, name, "vector", partial(read_vector, inside, None))


def _detect(data: DataFolder) -> str:
    files = data.listed(*SUFFIXES)
    if not files or (not data.given and data.media()):
        return ""
    return f"{files[0]} holds arrays" + ("" if data.given else ", and there are no pictures, sounds or clips")


@source("vectors", _detect, 75)
def vectors(data: DataFolder) -> Iterator[Record]:
    """All vectors and their captions."""
    names, rows = set(data.names()), dict[str, list[str]]()
    sidecars = Sidecars(data, data.names(), data.listed(*SUFFIXES))
    for medium in vectors_below(data):
        yield medium
        if isinstance(medium, Problem):
            continue
        name, _, row = medium.origin.rpartition("/")
        if medium.path == str(data.root / medium.origin):
            yield from sidecars.words(medium.origin, data.split_of(medium.origin, folders_only=True))
        elif row.isdecimal():
            rows.setdefault(name, []).append(medium.origin)
    for name, origins in rows.items():
        yield from _lines(data, name, origins, names)


def _lines(data: DataFolder, name: str, origins: list[str], names: set[str]) -> Iterator[Words | Problem]:
    beside = str(Path(name).with_suffix(".txt"))
    if beside not in names:
        return
    data.used.add(beside)
    lines = data.text(beside).removesuffix("\n").split("\n")
    if len(lines) != len(origins):
        yield Problem(beside, "lines don't match the rows", f"{len(lines)} lines for {len(origins)} rows of {name}")
        return
    yield from (Words((origin,), caption(line)) for origin, line in zip(origins, lines, strict=True) if line.strip())
