"""What cached features save: media encoded once, against the encoder in the training loop."""

import math
from dataclasses import dataclass

from periscope.shards.read import FeatureSet
from periscope.shards.timing import load_timing
from periscope.training.config import TrainConfig
from periscope.training.data.dataset import TextIndex
from periscope.training.data.order import epoch_steps


@dataclass(frozen=True)
class Caching:
    """Encoding times in seconds, from precompute's measurements.

    once: all media, into the cache · per_epoch: decoding and encoding in the loop, each medium as often as an epoch's
    steps contain it · per_medium: one medium's share of `once`, on `device`.
    """

    once: float
    per_epoch: float
    per_medium: float
    device: str

    def cheaper_from(self, waited: float = 0.0) -> float:
        """The number of epochs E after which the cache has cost less: `once + E * waited < E * per_epoch`.

        waited: seconds per epoch spent waiting for cached features. Infinite when reading takes as long as encoding.
        """
        return self.once / (self.per_epoch - waited) if self.per_epoch > waited else math.inf

    def __str__(self) -> str:
        return (
            f"caching: encoding took {_time(self.once)} once ({self.per_medium:.3g} s a medium on {self.device}); in "
            f"the training loop it would take {_time(self.per_epoch)} in every epoch, so the cache is cheaper after "
            f"{self.cheaper_from():.2g} epochs"
        )

    def measured(self, epoch: float, waited: float) -> str:
        """Compare with the measured seconds of an epoch, of which `waited` were spent waiting for features."""
        loop = epoch - waited + self.per_epoch
        return (
            f"caching: an epoch took {_time(epoch)} and would have taken {_time(loop)} with the encoder in the loop, "
            f"{loop / epoch:.2g} times as long; cheaper after {self.cheaper_from(waited):.2g} epochs"
        )


def caching(features: FeatureSet, kind: str, index: TextIndex, config: TrainConfig, ranks: int = 1) -> Caching | None:
    """What cached features save a training on the texts of `index`; None when precompute measured nothing.

    In the loop, `ranks` processes would share the encoding, of one view of each medium.
    """
    timing, media = load_timing(features.path), media_per_epoch(index, config)
    if timing is None or not media:
        return None
    per_medium = timing.seconds / timing.media
    views = features.manifest["features"][kind].get("views", 1)
    per_epoch = media * (timing.decode + timing.encode / views) / timing.media / ranks
    return Caching(per_medium * features.manifest["counts"]["media"], per_epoch, per_medium, timing.device)


def media_per_epoch(index: TextIndex, config: TrainConfig) -> int:
    """How many media the steps of an epoch read; a medium counts once for each step that contains it."""
    together = config.data.texts_per_medium
    steps = epoch_steps(index.about, index.lengths, config.batch, config.seed, epoch=0, texts_per_medium=together)
    return sum(sum({index.about[i]: index.media[i] for i in step}.values()) for step in steps)


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
