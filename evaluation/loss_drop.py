"""How much a text's loss drops when the model sees its medium, so that bad captions stand out.

The loss drop of a text is the loss without its medium (with another medium's features, or with none, whichever is
lower) minus the loss with it, in nats per target token. Words that fit the medium have a drop well above 0; words about
something else cost more with the right features than without.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from periscope.adapters.model import AdaptedModel
from periscope.bars import progress_bar
from periscope.errors import RunError
from periscope.evaluation.controls import conditions, stand_ins, text_losses
from periscope.shards.read import FeatureSet
from periscope.shards.texts import Text
from periscope.training.data.dataset import TextFeatureDataset, medium_contents, question_of

WORDS_SHOWN = 80  # characters


@dataclass(frozen=True)
class LossDrop:
    """A text's loss in nats per target token: with its own medium's features (`real`), with another medium's
    (`shuffled`, None where none can stand in) and without a medium (`none`).
    """

    text: Text
    real: float
    shuffled: float | None
    none: float

    @property
    def drop(self) -> float:
        """The lower loss without the medium, minus the loss with it."""
        return min(value for value in (self.shuffled, self.none) if value is not None) - self.real


def rank_texts(model: AdaptedModel, features: FeatureSet, texts: Sequence[Text], batch: int) -> list[LossDrop]:
    """The loss drops of the texts about a medium, lowest first. Texts that can't be trained on are left out.

    Raises RunError when no text is left.
    """
    dataset = TextFeatureDataset(features, model.prompt, model.adapter)
    kept = dataset.keep([text for text in texts if text.media], model.lm.max_length).texts
    if not kept:
        raise RunError(f"{features.path} holds no such text about a medium that could be learnt from")
    return loss_drops(model, dataset, kept, stand_ins(medium_contents(features, kept)), batch)


def loss_drops(
    model: AdaptedModel, dataset: TextFeatureDataset, texts: Sequence[Text], stand_in: Mapping[str, str], batch: int
) -> list[LossDrop]:
    """The loss drops of `texts`, lowest first. stand_in: medium -> the medium whose features it gets; may be empty."""
    under = conditions(("shuffled", "none"), stand_in)
    ordered = sorted(texts, key=lambda text: sum(len(turn["content"]) for turn in text.turns))
    with progress_bar(total=len(texts) * len(under), unit=" texts", desc="comparing") as bar:
        summed = text_losses(model, dataset, ordered, under, batch, bar.update)
    losses = {name: [loss / count for loss, count in rows] for name, rows in summed.items()}
    shuffled = losses.get("shuffled", [None] * len(ordered))
    found = map(LossDrop, ordered, losses["real"], shuffled, losses["none"])
    return sorted(found, key=lambda each: (each.drop, each.text.id))


def jsonl_lines(drops: Iterable[LossDrop], features: FeatureSet) -> Iterator[dict]:
    """Lines of gain.jsonl: the loss drop (as `gain`), the losses it comes from, and the text."""
    for each in drops:
        values = {"gain": each.drop, "real": each.real, "shuffled": each.shuffled, "none": each.none}
        losses = {name: None if value is None else round(value, 4) for name, value in values.items()}
        origins = [features.info(key)["origin"] for key in each.text.media]
        yield losses | {
            "id": each.text.id,
            "split": each.text.split,
            "origin": origins,
            "turns": each.text.row()["turns"],
        }


def one_line(each: LossDrop, features: FeatureSet) -> str:
    """A text in one line: its medium's origin and its words."""
    question, answer = question_of(each.text), each.text.turns[-1]["content"]
    words = f"{question} {answer}" if question else answer
    return f"{features.info(each.text.media[0])['origin']}  {' '.join(words.split())[:WORDS_SHOWN]}"


def worst(drops: Sequence[LossDrop], share: float) -> set[str]:
    """The ids of that share of the texts, those with the lowest drops; for a share of 0, those with a drop below 0."""
    count = round(share * len(drops)) if share else sum(each.drop < 0 for each in drops)
    return {each.text.id for each in drops[:count]}


def without(texts: Sequence[Text], dropped: set[str]) -> Iterator[dict]:
    """The lines of a texts file: all `texts` but those whose id is in `dropped`."""
    for text in texts:
        if text.id not in dropped:
            yield text.row()
