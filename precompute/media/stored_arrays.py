"""Arrays in .npy and .safetensors files: of each file the headers, and of each medium its own numbers are read.

Nothing is decoded and nothing is mapped into memory: numbers are read as they lie in the file, into as much memory as
its header and its size agree on. A mapped file that is cut meanwhile, or lies on a disk that fails, would end the
process.
"""

import math
import os
import struct
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from periscope.errors import MediaError
from periscope.precompute.media.file import open_regular, unreadable
from periscope.precompute.media.limits import check_bytes
from periscope.precompute.media.npy import LONGEST, ArrayHeader, header_of

LONGEST_TABLE = 1 << 25  # bytes of the header of a .safetensors: about 300,000 tensors
SCATTERED = 1 << 18  # numbers of a row that don't lie together: each is read on its own
TYPES = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}  # others aren't media


class _Entry(msgspec.Struct, gc=False):
    """What the header of a .safetensors says of one tensor: https://huggingface.co/docs/safetensors#format."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def arrays_in(path: Path) -> dict[str, ArrayHeader]:
    """The arrays in a file, by name ("" for a .npy). Raises MediaError."""
    with open_regular(path) as stream:
        return _arrays(path, *_version(stream))


def read_array(path: Path, name: str, row: int | None) -> np.ndarray:
    """One row (None: all) of the array of that name in a file; no more than that is read. Raises MediaError, also for
    numbers that aren't floating-point.
    """
    with open_regular(path) as stream:
        array = _arrays(path, *_version(stream)).get(name)
        if array is None:
            raise MediaError("can't be opened", f"no tensor {name!r} in it")
        shape = array.shape if row is None else array.shape[1:]
        array.check(shape)
        if row is not None and not (array.shape and 0 <= row < array.shape[0]):
            raise MediaError("can't be opened", f"it has {array.shape[0] if array.shape else 'no'} rows")
        try:
            data = _numbers(stream, array, row, math.prod(shape))
        except OSError as error:
            raise unreadable(error, path) from error
    numbers = np.frombuffer(data, array.dtype).reshape(shape, order="F" if array.fortran else "C")
    return (numbers.astype(np.uint32) << 16).view(np.float32) if array.bfloat16 else numbers


def _numbers(stream: BinaryIO, array: ArrayHeader, row: int | None, count: int) -> bytes:
    """The bytes of one row (None: all rows), of so many numbers."""
    each = array.dtype.itemsize
    check_bytes(count * each)
    if array.fortran and row is not None and len(array.shape) > 1:
        if count > SCATTERED:
            raise MediaError("can't be opened", "it is in Fortran order: save it with numpy.ascontiguousarray")
        starts = range(array.start + row * each, array.start + array.shape[0] * count * each, array.shape[0] * each)
        data = b"".join(_read(stream, start, each) for start in starts)
    else:
        data = _read(stream, array.start + (row or 0) * count * each, count * each)
    if len(data) < count * each:
        raise MediaError("can't be opened", "it was cut while it was read")
    return data


def _read(stream: BinaryIO, start: int, size: int) -> bytes:
    stream.seek(start)
    return stream.read(size)


def _version(stream: BinaryIO) -> tuple[int, int, int]:
    """What tells a file from what was there before: inode, size and time of its last change."""
    status = os.fstat(stream.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns


@lru_cache(maxsize=4)  # of the same file many rows or tensors are read, one after another
def _arrays(path: Path, *version: int) -> dict[str, ArrayHeader]:
    with open_regular(path) as stream:
        if _version(stream) != version:
            raise MediaError("can't be opened", "it changes while it is read")
        size = version[1]
        try:
            if path.suffix.lower() == ".npy":
                return {"": header_of(stream.read(LONGEST + 20), size)}
            return _tensors(stream, size)
        except OSError as error:
            raise unreadable(error, path) from error


def _tensors(stream: BinaryIO, size: int) -> dict[str, ArrayHeader]:
    """The tensors of a .safetensors file of so many bytes. Raises MediaError."""
    begin = stream.read(8)
    length = struct.unpack("<Q", begin)[0] if len(begin) == 8 else -1
    if not 0 < length <= size - 8:
        raise MediaError("can't be opened", "it isn't a .safetensors file")
    if length > LONGEST_TABLE:
        raise MediaError("too many rows", f"a header of {length:,} bytes, where {LONGEST_TABLE:,} are the most")
    try:
        table = msgspec.json.decode(stream.read(length), type=dict[str, msgspec.Raw])
        table.pop("__metadata__", None)
        reader = msgspec.json.Decoder(_Entry)
        return {name: _header(reader.decode(entry), 8 + length, size) for name, entry in table.items()}
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError("can't be opened", f"a damaged header: {error}") from error


def _header(entry: _Entry, start: int, size: int) -> ArrayHeader:
    begin, end = entry.data_offsets
    dtype = np.dtype(TYPES.get(entry.dtype, "V1"))
    count = math.prod(entry.shape)
    if min(entry.shape, default=0) < 0 or not 0 <= begin <= end <= size - start:
        raise MediaError("can't be opened", f"it says {entry.shape} at {begin} to {end}, which is more than it holds")
    if entry.dtype in TYPES and end - begin != count * dtype.itemsize:
        raise MediaError("can't be opened", f"{entry.shape} {entry.dtype} aren't {end - begin} bytes")
    return ArrayHeader(entry.shape, False, dtype, start + begin, entry.dtype == "BF16")
