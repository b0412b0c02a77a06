"""Arrays in .npy files (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html): numpy reads the
header, and what it claims is held against the file before any memory is taken for it.
"""

import io
import math
import os
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np

from periscope.errors import MediaError
from periscope.precompute.media.file import open_regular

LONGEST = 10_000  # bytes of a header, numpy's own limit
MOST_NUMBERS = 1 << 25  # of one medium: 8,192 tokens of width 4,096
# numpy reads a header by Python's parser, which raises SystemError now and then when two threads use it at once
# (Python 3.11, https://github.com/python/cpython/issues/106905).
ONE_AT_A_TIME = threading.Lock()
READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class ArrayHeader(NamedTuple):
    """What an array is, and where its numbers begin. fortran: the first axis is the one that lies together."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    start: int


def header_of(begin: bytes, size: int) -> ArrayHeader:
    """The header of a .npy file of `size` bytes that begins so. Raises MediaError, also when it claims more numbers
    than the file has.
    """
    stream = io.BytesIO(begin[: LONGEST + 20])
    try:
        version = np.lib.format.read_magic(stream)
        if version not in READERS:
            raise ValueError("not an array of numbers")
        with ONE_AT_A_TIME:
            header = ArrayHeader(*READERS[version](stream, LONGEST), stream.tell())
    except Exception as error:  # numpy raises nearly anything on what isn't its own
        raise MediaError("can't be opened", str(error)) from error
    if header.dtype.hasobject:
        raise MediaError("can't be opened", "it holds Python objects")
    if min(header.shape, default=0) < 0 or math.prod(header.shape) * header.dtype.itemsize > size - header.start:
        raise MediaError("can't be opened", f"it says {header.shape} {header.dtype}, which is more than it holds")
    return header


def file_header(path: Path) -> ArrayHeader:
    """The header of a .npy file. Raises MediaError."""
    with open_regular(path) as stream:
        return header_of(stream.read(LONGEST + 20), os.fstat(stream.fileno()).st_size)


def read_row(path: Path, row: int | None) -> np.ndarray:
    """One row of the array in a .npy file (None: all of it); no more than that is read. Raises MediaError."""
    header = file_header(path)
    shape = header.shape if row is None else header.shape[1:]
    check_numbers(header.dtype.kind == "f", shape, str(header.dtype))
    if row is not None and not 0 <= row < header.shape[0]:
        raise MediaError("can't be opened", f"it has {header.shape[0]} rows")
    count = math.prod(shape)
    with open_regular(path) as stream:
        if header.fortran and row is not None:  # whose numbers are scattered
            whole: np.ndarray = np.memmap(stream, header.dtype, "r", header.start, header.shape, "F")
            return np.array(whole[row])
        stream.seek(header.start + (row or 0) * count * header.dtype.itemsize)
        data = stream.read(count * header.dtype.itemsize)
    if len(data) < count * header.dtype.itemsize:
        raise MediaError("can't be opened", "it was cut while it was read")
    return np.frombuffer(data, header.dtype).reshape(shape, order="F" if header.fortran else "C")


def array_in(data: bytes) -> np.ndarray:
    """The array in the bytes of a .npy file, not copied. Raises MediaError."""
    header = header_of(data, len(data))
    check_numbers(header.dtype.kind == "f", header.shape, str(header.dtype))
    flat = np.frombuffer(data, header.dtype, math.prod(header.shape), header.start)
    return flat.reshape(header.shape, order="F" if header.fortran else "C")


def check_numbers(floating: bool, shape: tuple[int, ...], dtype: str) -> None:
    """Raise MediaError for a medium that doesn't consist of floating-point numbers, or of too many."""
    if not floating:
        raise MediaError("not floating-point numbers", dtype)
    if (count := math.prod(shape)) > MOST_NUMBERS:
        raise MediaError("too many numbers", f"{count:,} in one medium, where {MOST_NUMBERS:,} are the most")
