"""What caching buys: media encoded once and read from the cache, against the encoder in the training loop."""

import math
from dataclasses import dataclass

from periscope.shards.read import FeatureSet
from periscope.shards.timing import load_timing
from periscope.training.config import TrainConfig
from periscope.training.data.dataset import TextIndex
from periscope.training.data.order import epoch_steps


@dataclass(frozen=True)
class Caching:
    """Seconds, by what precompute noted: `once` to make the cache of all media, `again` to decode and encode an epoch's
    media in the loop, as often as its steps show them. `each` is a medium's share of `once`, on `device`.
    """

    once: float
    again: float
    each: float
    device: str

    def cheaper_from(self, waited: float = 0.0) -> float:
        """The number of epochs after which the cache has cost less: `once + E * waited < E * again`, where `waited` are
        the seconds of an epoch spent waiting for cached features. Infinite when reading costs as much as encoding.
        """
        return self.once / (self.again - waited) if self.again > waited else math.inf

    def __str__(self) -> str:
        return (
            f"caching: encoding took {_time(self.once)} once ({self.each:.3g} s a medium on {self.device}); in the "
            f"training loop it would take {_time(self.again)} in every epoch, so the cache is cheaper after "
            f"{self.cheaper_from():.2g} epochs"
        )

    def measured(self, epoch: float, waited: float) -> str:
        """The same against what an epoch took, in seconds, and the part of these spent waiting for features."""
        loop = epoch - waited + self.again
        return (
            f"caching: an epoch took {_time(epoch)} and would have taken {_time(loop)} with the encoder in the loop, "
            f"{loop / epoch:.2g} times as long; cheaper after {self.cheaper_from(waited):.2g} epochs"
        )


def caching(features: FeatureSet, kind: str, kept: TextIndex, config: TrainConfig, ranks: int = 1) -> Caching | None:
    """What caching this set buys a training on the texts that were `kept`, where `ranks` processes would share the
    encoding in the loop, of one view of each medium. None when nothing is noted of how the set was made.
    """
    timing, shown = load_timing(features.path), media_shown(kept, config)
    if timing is None or not shown:
        return None
    each = timing.seconds / timing.media
    views = features.manifest["features"][kind].get("views", 1)
    again = shown * (timing.decode + timing.encode / views) / timing.media / ranks
    return Caching(each * features.manifest["counts"]["media"], again, each, timing.device)


def media_shown(kept: TextIndex, config: TrainConfig) -> int:
    """How many media an epoch's steps read; one counts as often as a step has it."""
    shared = config.data.texts_per_medium
    steps = epoch_steps(kept.about, kept.lengths, config.batch, config.seed, epoch=0, texts_per_medium=shared)
    return sum(sum({kept.about[i]: kept.media[i] for i in step}.values()) for step in steps)


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
