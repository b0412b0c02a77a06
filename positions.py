"""Reading at a position of an open file, from several threads at once."""

import os
import threading
from collections.abc import Sequence

LOCK = threading.Lock()  # for the systems (Windows) where a file has one position and no pread


def read_at(file: int, size: int, place: int) -> bytes:
    """`size` bytes from `place` on, fewer at the end of the file. file: a descriptor."""
    if hasattr(os, "pread"):
        return os.pread(file, size, place)
    with LOCK:
        os.lseek(file, place, os.SEEK_SET)
        return os.read(file, size)


def fill_at(file: int, buffers: Sequence, place: int) -> int:
    """Fill the buffers, one after another, from `place` on; how many bytes there were."""
    if hasattr(os, "preadv"):
        return os.preadv(file, buffers, place)
    filled = 0
    for buffer in buffers:
        into = memoryview(buffer).cast("B")
        data = read_at(file, len(into), place + filled)
        into[: len(data)] = data
        filled += len(data)
        if len(data) < len(into):
            break
    return filled
