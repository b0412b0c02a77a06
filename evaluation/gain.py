"""Which texts their media explain: what looking gains on each, so that bad captions stand out.

A text's gain is how much less its words cost, in nats per target token, with its own medium's features than with what
costs least without them: another medium's, or none. Where the words fit the medium it is well above 0; words about
something else cost more with the right features than without.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from periscope.adapters.model import AdaptedModel
from periscope.evaluation.answer import Condition
from periscope.shards.texts import Text
from periscope.training.data.dataset import TextFeatureDataset


@dataclass(frozen=True)
class LossDrop:
    """A text's loss in nats per target token with its own medium's features (`real`), another's (`shuffled`, None where
    none can stand in) and no medium (`none`), and what looking gains.
    """

    text: Text
    real: float
    shuffled: float | None
    none: float

    @property
    def gain(self) -> float:
        return min(value for value in (self.shuffled, self.none) if value is not None) - self.real


def rank(
    model: AdaptedModel, encoded: TextFeatureDataset, texts: Sequence[Text], stand_in: Mapping[str, str], batch: int
) -> list[LossDrop]:
    """The gains of `texts`, the worst first. stand_in: medium -> the one whose features it borrows; may be empty."""
    under = {"real": Condition(), "none": Condition(media=False)}
    if stand_in:
        under["shuffled"] = Condition(instead=stand_in.__getitem__)
    order = sorted(range(len(texts)), key=lambda i: sum(len(turn["content"]) for turn in texts[i].turns))
    losses: dict[str, dict[int, float]] = {name: {} for name in under}
    with tqdm(total=len(texts) * len(under), unit=" texts", desc="comparing") as bar:
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            for name, condition in under.items():
                given = condition.batch(encoded, [texts[i] for i in part], answer=True)
                rows = model.text_losses(given.texts, given.features)
                losses[name] |= {i: loss / count for i, (loss, count) in zip(part, rows, strict=True)}
                bar.update(len(part))
    shuffled = losses.get("shuffled", {})
    found = [LossDrop(text, losses["real"][i], shuffled.get(i), losses["none"][i]) for i, text in enumerate(texts)]
    return sorted(found, key=lambda one: (one.gain, one.text.id))
