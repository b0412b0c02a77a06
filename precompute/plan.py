"""What a run will take, said before it starts."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from . import PrecomputeError

OVERHEAD = 2600  # bytes of tar headers, padding, json and safetensors header per medium, and its row in the index
SPARE = 64 << 20  # left free on the disk


def bytes_each(features: Mapping[str, dict]) -> dict[str, int]:
    """kind -> bytes of one medium's float16 features; `features` is the manifest's."""
    return {kind: 2 * prod(entry["shape"]) for kind, entry in features.items()}


@dataclass(frozen=True)
class Plan:
    """items: media to encode now · done: already in the set · each: kind -> bytes per medium · free: bytes on the
    disk of `out` · seconds: estimated for all items, from a first few.
    """

    items: int
    done: int
    each: dict[str, int]
    out: Path
    free: int
    seconds: float

    @property
    def total(self) -> int:
        """Bytes that will be written."""
        return self.items * (sum(self.each.values()) + OVERHEAD)

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {size(n)}" for kind, n in self.each.items())
        done = f" ({self.done} more are there already)" if self.done else ""
        return (
            f"plan: {self.items} media to encode{done} · each {kinds} · {size(self.total)} in all, "
            f"{size(self.free)} free at {self.out} · about {duration(self.seconds)}"
        )

    def check(self) -> None:
        """Raise PrecomputeError when it won't fit on the disk."""
        if self.total + SPARE > self.free:
            smaller = " (--kinds pooled needs far less)" if len(self.each) > 1 or "patches" in self.each else ""
            raise PrecomputeError(
                f"{size(self.total)} won't fit at {self.out}, which has {size(self.free)} free: "
                f"choose fewer --kinds{smaller}, a smaller --limit, or another disk with --out"
            )


def free_bytes(folder: Path) -> int:
    """Bytes free for this user on the disk that holds, or will hold, `folder`."""
    folder = Path(os.path.abspath(folder))
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def size(number: float) -> str:
    """Bytes for people, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def duration(seconds: float) -> str:
    """A time for people."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
