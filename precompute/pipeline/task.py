"""What is computed for each sample: shared by this process, its threads and Ray's workers."""

from dataclasses import dataclass, field

from periscope.precompute.encoders.base import Encoder
from periscope.precompute.media.limits import Limits, limits
from periscope.precompute.pipeline.filters import Filters


@dataclass(frozen=True)
class EncodingTask:
    """encoder, kinds: which features are computed · features: kind -> manifest entry, how they are stored · views: of
    each sample, all but the first augmented · filters: what is left out · limits: what is too large to decode.
    """

    encoder: Encoder
    kinds: tuple[str, ...]
    features: dict[str, dict]
    views: int
    filters: Filters
    limits: Limits = field(default_factory=limits)
