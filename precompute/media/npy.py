"""Arrays in .npy files (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html): numpy reads the
header, and what it claims is held against the file before any memory is taken for it.
"""

import io
import math
import threading
from typing import NamedTuple

import numpy as np

from periscope.errors import MediaError

LONGEST = 10_000  # bytes of a header, numpy's own limit
MOST_NUMBERS = 1 << 25  # of one medium: 8,192 tokens of width 4,096
SIZES = (2, 4, 8)  # bytes of a number; longer ones are another thing on every machine
# numpy reads a header by Python's parser, which raises SystemError now and then when two threads use it at once
# (Python 3.11, https://github.com/python/cpython/issues/106905).
ONE_AT_A_TIME = threading.Lock()
TRIES = 5  # of reading a header: threads of other libraries use that parser without the lock
READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class ArrayHeader(NamedTuple):
    """What an array is, and where its numbers begin. fortran: the first axis is the one that lies together · bfloat16:
    the numbers are those, which numpy has as whole ones.
    """

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    start: int
    bfloat16: bool = False

    def check(self, shape: tuple[int, ...]) -> None:
        """As `check_numbers`, for a medium of this shape."""
        floating = self.bfloat16 or (self.dtype.kind == "f" and self.dtype.itemsize in SIZES)
        check_numbers(floating, shape, str(self.dtype))


def header_of(begin: bytes, size: int) -> ArrayHeader:
    """The header of a .npy file of `size` bytes that begins so. Raises MediaError, also when it claims more numbers
    than the file has.
    """
    try:
        header = _parsed(begin[: LONGEST + 20])
    except SystemError:
        raise  # not the file's fault
    except Exception as error:  # numpy raises nearly anything on what isn't its own
        raise MediaError("can't be opened", str(error)) from error
    if header.dtype.hasobject:
        raise MediaError("can't be opened", "it holds Python objects")
    if min(header.shape, default=0) < 0 or math.prod(header.shape) * header.dtype.itemsize > size - header.start:
        raise MediaError("can't be opened", f"it says {header.shape} {header.dtype}, which is more than it holds")
    return header


def _parsed(begin: bytes) -> ArrayHeader:
    for attempt in range(1, TRIES + 1):
        stream = io.BytesIO(begin)
        version = np.lib.format.read_magic(stream)
        if version not in READERS:
            raise ValueError("not an array of numbers")
        try:
            with ONE_AT_A_TIME:
                return ArrayHeader(*READERS[version](stream, LONGEST), stream.tell())
        except SystemError:
            if attempt == TRIES:
                raise
    raise AssertionError


def array_in(data: bytes) -> np.ndarray:
    """The array in the bytes of a .npy file, not copied. Raises MediaError."""
    header = header_of(data, len(data))
    header.check(header.shape)
    flat = np.frombuffer(data, header.dtype, math.prod(header.shape), header.start)
    return flat.reshape(header.shape, order="F" if header.fortran else "C")


def check_numbers(floating: bool, shape: tuple[int, ...], dtype: str) -> None:
    """Raise MediaError for a medium that doesn't consist of floating-point numbers, or of too many."""
    if not floating:
        raise MediaError("not floating-point numbers", dtype)
    if (count := math.prod(shape)) > MOST_NUMBERS:
        raise MediaError("too many numbers", f"{count:,} in one medium, where {MOST_NUMBERS:,} are the most")
