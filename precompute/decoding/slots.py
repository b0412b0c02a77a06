"""Memory that a worker shares with the main process, so that pixels don't go through a pipe."""

import math
import mmap
import os
import struct
import tempfile
from dataclasses import dataclass
from multiprocessing import reduction
from typing import Any

import numpy as np
from PIL import Image

from periscope.errors import MediaError

SIZE = 1 << 31  # bytes of address space; only what was written takes memory
HELD = 64 << 20  # bytes that a slot may keep between requests
ALIGNED = 64
HEADER = struct.Struct("qq")
NOT_BEGUN = -1


@dataclass(frozen=True)
class PlacedImage:
    """An RGB image in a slot, 4 bytes per pixel as Pillow holds it."""

    start: int
    size: tuple[int, int]


@dataclass(frozen=True)
class PlacedArray:
    """An array in a slot. dtype: as `numpy.dtype.str`."""

    start: int
    shape: tuple[int, ...]
    dtype: str


def size_of(value: Any) -> int:
    """Bytes that a decoded medium takes."""
    if isinstance(value, list):
        return sum(map(size_of, value))
    return 4 * value.width * value.height if isinstance(value, Image.Image) else getattr(value, "nbytes", 0)


class Slot:
    """A file without a name, mapped by the main process and, once it was sent there, by a worker.

    Begins with the number of the source that the worker is busy with, so that the main process knows which one ended
    it, and the number of bytes taken.
    """

    def __init__(self, file: int):
        self.file = open(file, "r+b", buffering=0)  # noqa: SIM115, it lives as long as the slot
        self.memory = mmap.mmap(file, SIZE)
        self._canvases: list[tuple[Any, PlacedImage]] = []

    @classmethod
    def create(cls) -> "Slot":
        """A new, empty slot."""
        if hasattr(os, "memfd_create"):
            file = os.memfd_create("periscope-decoding")
        else:
            with tempfile.TemporaryFile() as unnamed:
                file = os.dup(unnamed.fileno())
        os.ftruncate(file, SIZE)
        slot = cls(file)
        slot.reset()
        return slot

    def __reduce__(self) -> tuple:
        return _received, (reduction.DupFd(self.file.fileno()),)

    def close(self) -> None:
        """Close the file. The memory goes with the last image in it."""
        self.file.close()

    def reset(self) -> None:
        """Empty the slot."""
        if self.used > HELD:
            self.file.truncate(0)
            self.file.truncate(SIZE)
        self.used = ALIGNED
        self.at = NOT_BEGUN

    @property
    def at(self) -> int:
        """Number of the source that the worker is busy with."""
        return HEADER.unpack_from(self.memory)[0]

    @at.setter
    def at(self, number: int) -> None:
        HEADER.pack_into(self.memory, 0, number, self.used)

    @property
    def used(self) -> int:
        """Bytes taken, from the begin on."""
        return HEADER.unpack_from(self.memory)[1]

    @used.setter
    def used(self, size: int) -> None:
        HEADER.pack_into(self.memory, 0, self.at, size)

    def forget_canvases(self) -> None:
        """Copy what comes next, whatever it was decoded into."""
        self._canvases.clear()

    def room_for(self, size: int) -> bool:
        """Whether so many more bytes fit."""
        return self.used + size + ALIGNED <= SIZE

    def reserve(self, size: int) -> int:
        """Where so many bytes begin. Raises MediaError when they don't fit."""
        if not self.room_for(size):
            raise MediaError("too large for the memory", f"{size:,} bytes when decoded")
        start = -(-self.used // ALIGNED) * ALIGNED
        self.used = start + size
        return start

    def add_bytes(self, data: bytes) -> int:
        """Copy bytes into the slot. Returns where they begin."""
        start = self.reserve(len(data))
        self.memory[start : start + len(data)] = data
        return start

    def canvas(self, size: tuple[int, int]) -> Any:
        """Memory of this slot for Pillow to decode an RGB image into, which `place` then needn't copy. None where there
        is no room, or Pillow has no such memory.
        """
        if not hasattr(Image.core, "map_buffer") or not self.room_for(4 * size[0] * size[1]):
            return None
        area = PlacedImage(self.reserve(4 * size[0] * size[1]), size)
        image = _mapped(self._pixels(area), size).im
        self._canvases.append((image, area))
        return image

    def place(self, value: Any) -> Any:
        """Copy a decoded medium into the slot once; a list is emptied, so that not all of it is there twice. Returns
        what `take` finds it by; anything but images, arrays and lists of these is returned as it is.
        """
        if isinstance(value, list):
            placed = []
            while value:
                placed.append(self.place(value.pop(0)))
            return placed
        if isinstance(value, Image.Image) and value.mode == "RGB":
            if (drawn := next((area for image, area in self._canvases if image is value.im), None)) is not None:
                return drawn
            area = PlacedImage(self.reserve(4 * value.width * value.height), value.size)
            pixels = self._pixels(area)
            if hasattr(Image.core, "map_buffer"):
                _mapped(pixels, value.size).im.paste(value.im, (0, 0, *value.size))
            else:
                pixels[:] = value.tobytes("raw", "RGBX")
            return area
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
            array = PlacedArray(self.reserve(value.nbytes), value.shape, value.dtype.str)
            self._view(array)[...] = value
            return array
        return value

    def take(self, placed: Any) -> Any:
        """What was placed: an array as a copy, an image without one, which is valid until the slot is used again."""
        if isinstance(placed, list):
            return [self.take(item) for item in placed]
        if isinstance(placed, PlacedImage):
            pixels = self._pixels(placed)
            if hasattr(Image.core, "map_buffer"):
                return _mapped(pixels, placed.size)
            return Image.frombytes("RGB", placed.size, pixels, "raw", "RGBX")
        return self._view(placed).copy() if isinstance(placed, PlacedArray) else placed

    def _pixels(self, placed: PlacedImage) -> memoryview:
        return memoryview(self.memory)[placed.start : placed.start + 4 * placed.size[0] * placed.size[1]]

    def _view(self, placed: PlacedArray) -> np.ndarray:
        count = math.prod(placed.shape)
        return np.frombuffer(self.memory, np.dtype(placed.dtype), count, placed.start).reshape(placed.shape)


def _mapped(pixels: memoryview, size: tuple[int, int]) -> Image.Image:
    """An RGB image of this memory. `Image.frombuffer` does the same, but for RGBX, which Pillow holds as it holds RGB,
    and for fewer modes than the C function behind it.
    """
    return Image.Image()._new(Image.core.map_buffer(pixels, size, "raw", 0, ("RGB", 0, 1)))


def _received(file: Any) -> Slot:
    return Slot(file.detach())
