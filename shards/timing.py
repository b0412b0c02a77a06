"""timing.json: how long it took to encode a set. Optional; the only file that differs when a set is made twice."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from periscope.atomic import replace_bytes
from periscope.checked import check_type, read_json
from periscope.errors import FeatureSetError

NAME = "timing.json"


@dataclass(frozen=True)
class Timing:
    """Seconds for `media` media on `device`: waiting for decoding, encoding, writing."""

    media: int
    decode: float
    encode: float
    write: float
    device: str

    @property
    def seconds(self) -> float:
        return self.decode + self.encode + self.write


def load_timing(folder: Path) -> Timing | None:
    """The timing of a set; None when it is missing or unreadable."""
    try:
        timing: Timing = check_type(read_json(Path(folder) / NAME, FeatureSetError), Timing, NAME, FeatureSetError)
    except FeatureSetError:
        return None
    return timing if timing.media > 0 and 0 < timing.seconds < math.inf else None


def add_timing(folder: Path, more: Timing) -> None:
    """Add the time of further media of a set; earlier timings from another device are discarded."""
    known = load_timing(folder)
    if known and known.device == more.device:
        parts = {name: round(getattr(known, name) + getattr(more, name), 3) for name in ("decode", "encode", "write")}
        more = Timing(known.media + more.media, **parts, device=more.device)
    replace_bytes(Path(folder) / NAME, json.dumps(asdict(more)).encode() + b"\n")
