"""The held-out loss with a medium's own features and with another medium's, text by text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from periscope.adapters.model import AdaptedModel
from periscope.bars import progress_bar
from periscope.evaluation.controls import conditions, evenly, text_losses
from periscope.evaluation.metrics.score import Score, interval
from periscope.shards.read import FeatureSet
from periscope.shards.texts import Text
from periscope.training.data.dataset import TextFeatureDataset

MOST = 2000  # texts, evenly chosen: enough for an interval of a few hundredths of a nat


@dataclass(frozen=True)
class LossPair:
    """Held-out loss in nats per target token over the same targets: `real` with the medium's own features, `shuffled`
    with another medium's (None where none can stand in), and `drop`, their paired difference with its interval over
    media. `media` is the number of different media.
    """

    real: float
    shuffled: float | None
    drop: Score | None
    texts: int
    media: int

    def to_dict(self) -> dict:
        """The values for eval.json."""
        values: dict = {"real": round(self.real, 4), "texts": self.texts, "media": self.media}
        if self.shuffled is not None and self.drop:
            values |= {"shuffled": round(self.shuffled, 4), "drop": round(self.drop.value, 4)}
            values["interval"] = [round(self.drop.low, 4), round(self.drop.high, 4)]
        return values


def loss_pair(
    model: AdaptedModel, features: FeatureSet, texts: Sequence[Text], stand_in: Mapping[str, str], batch: int
) -> LossPair | None:
    """The losses of up to 2,000 of `texts`, asked as the adapter was trained; None where none has a loss (all longer
    than the language model's context). stand_in: medium -> the medium whose features it gets; may be empty.
    """
    dataset = TextFeatureDataset(features, model.prompt, model.adapter)
    kept = list(dataset.keep(evenly(texts, MOST), model.lm.max_length).texts)
    if not kept:
        return None
    under = conditions(("shuffled",), stand_in)
    ordered = sorted(kept, key=lambda text: sum(len(turn["content"]) for turn in text.turns))
    with progress_bar(total=len(kept) * len(under), unit=" texts", desc="held-out loss") as bar:
        return paired_losses(ordered, text_losses(model, dataset, ordered, under, batch, bar.update))


def paired_losses(texts: Sequence[Text], losses: Mapping[str, Sequence[tuple[float, int]]]) -> LossPair:
    """From each text's summed loss and number of targets under "real" and, where there is such, "shuffled"."""
    real = np.array(losses["real"], dtype=np.float64)
    names = [" ".join(text.media) for text in texts]
    loss, media = real[:, 0].sum() / real[:, 1].sum(), len(set(names))
    if "shuffled" not in losses:
        return LossPair(float(loss), None, None, len(texts), media)
    shuffled = np.array(losses["shuffled"], dtype=np.float64)
    rows = np.stack([shuffled[:, 0] - real[:, 0], real[:, 1]], -1)
    low, high = interval(rows, lambda sums: sums[:, 0] / sums[:, 1], names)
    drop = Score(float(rows[:, 0].sum() / rows[:, 1].sum()), low, high, len(texts))
    return LossPair(float(loss), float(shuffled[:, 0].sum() / shuffled[:, 1].sum()), drop, len(texts), media)
