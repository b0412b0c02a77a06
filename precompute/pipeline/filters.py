"""Media and captions that are left out on request. Each is counted and listed in rejected.jsonl."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from periscope.errors import MediaError
from periscope.precompute.decoding.pool import SLOW, too_slow
from periscope.precompute.encoders.base import UNPREPARED
from periscope.precompute.media.limits import NO_MEMORY, limits
from periscope.precompute.pipeline.similarity import Similarity

DUPLICATE = "duplicate content"
PASSING = (NO_MEMORY, UNPREPARED)  # reasons that may be the machine's at that moment
REASONS = (
    DUPLICATE,
    "shorter side below",
    "one colour in over",
    "unlike its words",
    "caption unlike",
)  # how the reasons begin


@dataclass(frozen=True)
class Filters:
    """min_side: least pixels of an image's shorter side, 0: any · drop_duplicates: of media with the same bytes keep
    the first, with the texts of all · similarity: compares captions with images, or None · one_colour: largest share
    of an image's pixels that may have the same colour, 0: any.
    """

    min_side: int = 0
    drop_duplicates: bool = False
    similarity: Similarity | None = None
    one_colour: float = 0.0

    def reasons(self) -> list[str]:
        """The reasons that these filters give."""
        found = [DUPLICATE] if self.drop_duplicates else []
        found += [self.small()] if self.min_side else []
        found += [self.plain()] if self.one_colour else []
        return found + ([self.similarity.reason()] if self.similarity else [])

    def small(self) -> str:
        """The reason for an image that is too small."""
        return f"shorter side below {self.min_side} pixels"

    def plain(self) -> str:
        """The reason for an image that is nearly of one colour."""
        return f"one colour in over {self.one_colour:.0%} of the pixels"

    def check_picture(self, medium: object) -> None:
        """Raise MediaError when a decoded image, or the first frame of a clip, is too small or nearly of one colour."""
        first = medium[0] if isinstance(medium, Sequence) and medium else medium
        if not isinstance(first, Image.Image):
            return
        if self.min_side and min(first.size) < self.min_side:
            raise MediaError(self.small(), f"{first.width} x {first.height}")
        if self.one_colour and (share := commonest_share(first)) > self.one_colour:
            raise MediaError(self.plain(), f"{share:.0%}")

    def settled(self, reason: str) -> bool:
        """Whether a medium left out for this reason before would be left out again."""
        if reason in PASSING:
            return False
        if reason.startswith(SLOW):
            return reason == too_slow(limits())
        return not reason.startswith(REASONS) or reason in self.reasons()


def commonest_share(image: Image.Image) -> float:
    """The share of an RGB image's pixels that have its commonest colour."""
    pixels = np.asarray(image, dtype=np.uint32)
    _, counts = np.unique(pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2], return_counts=True)
    return float(counts.max() / counts.sum())
