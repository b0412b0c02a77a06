"""What encoding will take on disk and in time, printed before it starts."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from periscope.errors import FeatureSetError, PrecomputeError
from periscope.shards.codecs import CODECS
from periscope.shards.features import settle_storage, stored_bytes
from periscope.units import format_bytes, format_duration

OVERHEAD = 2600  # bytes of tar headers, padding, json and safetensors header per medium, and its row in the index
SPARE = 64 << 20  # left free on the disk


def bytes_each(features: Mapping[str, dict]) -> dict[str, int]:
    """kind -> bytes per medium as stored. features: kind -> manifest entry."""
    return {kind: stored_bytes(entry) for kind, entry in features.items()}


def alternatives(features: Mapping[str, dict], views: int = 1) -> dict[str, int]:
    """Flags -> bytes per medium with them, largest first.

    features: kind -> manifest entry, as the encoder gives them. Tries fp16, int8 and int4, each unpooled and pooled 2x2
    and 3x3 where that divides the grid, and fewer kinds.
    """
    found = {}
    more = {"views": views} if views > 1 else {}
    for pool in ("1x1", "2x2", "3x3"):
        for codec in CODECS:
            try:
                entries = settle_storage(features, [codec], pool)
            except FeatureSetError:
                continue
            flags = f"--store {codec}" + (f" --pool {pool}" if pool != "1x1" else "")
            found[flags] = sum(stored_bytes(entry | more) for entry in entries.values())
    for number in range(1, len(features)):
        for kinds in combinations(features, number):
            found[f"--kinds {' '.join(kinds)}"] = sum(stored_bytes({**features[kind], **more}) for kind in kinds)
    return dict(sorted(found.items(), key=lambda row: -row[1]))


@dataclass(frozen=True)
class DiskPlan:
    """items: media to encode now · done: media already in the set · each: kind -> bytes per medium · free: bytes on the
    disk of `out` · seconds: estimate for all items · choices: flags -> bytes per medium with them, largest first, while
    there still is a choice.
    """

    items: int
    done: int
    each: dict[str, int]
    out: Path
    free: int
    seconds: float
    choices: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Bytes to be written."""
        return self._total(sum(self.each.values()))

    def _total(self, each: int) -> int:
        return self.items * (each + OVERHEAD)

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {format_bytes(n)}" for kind, n in self.each.items())
        done = f" ({self.done} more are there already)" if self.done else ""
        return (
            f"plan: {self.items} media to encode{done} · each {kinds} · {format_bytes(self.total)} in all, "
            f"{format_bytes(self.free)} free at {self.out} · about {format_duration(self.seconds)}"
        )

    def check(self) -> None:
        """Raise PrecomputeError when it won't fit on the disk, naming the largest choice that does; print them all."""
        if self.total + SPARE <= self.free:
            return
        smaller = {flags: self._total(each) for flags, each in self.choices.items() if self._total(each) < self.total}
        fitting = [flags for flags, total in smaller.items() if total + SPARE <= self.free]
        for flags, total in smaller.items():
            print(f"  {flags:<28}{format_bytes(total):>10}  {'fits' if flags in fitting else 'too much'}")
        mend = f"{fitting[0]} takes {format_bytes(smaller[fitting[0]])}; or choose " if fitting else "choose "
        raise PrecomputeError(
            f"{format_bytes(self.total)} won't fit at {self.out}, which has {format_bytes(self.free)} free: {mend}a "
            "smaller --limit, or another disk with --out"
        )


def free_bytes(folder: Path) -> int:
    """Bytes available to this user on the disk of `folder`, which may not exist yet."""
    folder = Path(os.path.abspath(folder))
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
