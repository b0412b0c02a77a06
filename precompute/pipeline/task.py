"""What is computed for each sample: shared by this process, its threads and Ray's workers."""

from dataclasses import dataclass

from periscope.precompute.encoders.base import Encoder
from periscope.precompute.pipeline.filters import Filters


@dataclass(frozen=True)
class EncodingTask:
    """encoder, kinds: which features are computed · features: kind -> manifest entry, how they are stored · views: of
    each sample, all but the first augmented · filters: what is left out.
    """

    encoder: Encoder
    kinds: tuple[str, ...]
    features: dict[str, dict]
    views: int
    filters: Filters
