"""timing.json: what encoding a set took. The one file that differs when a set is made twice; nothing needs it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from periscope.shards.atomic import replace_bytes

NAME = "timing.json"


@dataclass(frozen=True)
class Timing:
    """Seconds that `media` media took on `device`: to wait for them to be read and decoded, to encode, to write."""

    media: int
    decode: float
    encode: float
    write: float
    device: str

    @property
    def seconds(self) -> float:
        return self.decode + self.encode + self.write


def load_timing(folder: Path) -> Timing | None:
    """What was noted of a set; None when nothing was, or nothing that can be read."""
    try:
        timing = Timing(**json.loads((Path(folder) / NAME).read_bytes()))
        return timing if timing.media > 0 and timing.seconds > 0 else None
    except (OSError, ValueError, TypeError):
        return None


def add_timing(folder: Path, more: Timing) -> None:
    """Note what some more media of a set took; what was noted on another device is forgotten."""
    known = load_timing(folder)
    if known and known.device == more.device:
        parts = {name: round(getattr(known, name) + getattr(more, name), 3) for name in ("decode", "encode", "write")}
        more = Timing(known.media + more.media, **parts, device=more.device)
    replace_bytes(Path(folder) / NAME, json.dumps(asdict(more)).encode() + b"\n")
