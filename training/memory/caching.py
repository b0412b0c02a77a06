"""What cached features save: media encoded once, against the encoder in the training loop."""

import math
from dataclasses import dataclass

from periscope.shards.read import FeatureSet
from periscope.shards.timing import load_timing
from periscope.training.config import TrainConfig
from periscope.training.data.dataset import TextIndex
from periscope.training.data.order import TextOrder


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
            f"the training loop it would take {_time(self.per_epoch)} in every epoch, so the "
            f"cached features pay off {self._after(0.0)}"
        )

    def measured(self, epoch: float, waited: float) -> str:
        """Compare with the measured seconds of an epoch, of which `waited` were spent waiting for features."""
        loop = epoch - waited + self.per_epoch
        return (
            f"caching: an epoch took {_time(epoch)} and would have taken {_time(loop)} with the encoder in the loop, "
            f"{loop / epoch:.2g} times as long; the cached features pay off {self._after(waited)}"
        )

    def _after(self, waited: float) -> str:
        epochs = self.cheaper_from(waited)
        return f"after {epochs:.2g} epochs" if math.isfinite(epochs) else "never, because reading them takes as long"


def caching(
    features: FeatureSet, kind: str, index: TextIndex, config: TrainConfig, ranks: int = 1, media: int | None = None
) -> Caching | None:
    """What cached features save a training on the texts of `index`; None when precompute measured nothing, and for
    vectors that came ready-made, without an encoder.

    media: how many were encoded for this training (None: all of the set). In the loop, `ranks` processes would share
    the encoding, of one view of each medium.
    """
    timing, shown = load_timing(features.path), media_per_epoch(index, config)
    if timing is None or not shown or ready_made(features):
        return None
    per_medium = timing.seconds / timing.media
    views = features.manifest["features"][kind].get("views", 1)
    per_epoch = shown * (timing.decode + timing.encode / views) / timing.media / ranks
    encoded = features.manifest["counts"]["media"] if media is None else media
    return Caching(per_medium * encoded, per_epoch, per_medium, timing.device)


def ready_made(features: FeatureSet) -> bool:
    """Whether the set holds vectors that the user made, of which Periscope knows no encoder."""
    return str(features.manifest["encoder"]["name"]).startswith("vectors:")


def media_per_epoch(index: TextIndex, config: TrainConfig) -> int:
    """How many media the steps of an epoch read; a medium counts once for each step that contains it."""
    together = config.data.texts_per_medium
    columns = index.about, index.lengths, index.targets
    order = TextOrder(*columns, config.texts_per_step, config.seed, texts_per_medium=together)
    return sum(sum({index.about[i]: index.media[i] for i in step}.values()) for step in order.steps(0))


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
