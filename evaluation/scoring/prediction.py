"""One answer beside its references and beside what is answered under each control."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from periscope.evaluation.controls import REAL

ANSWER_FIELDS = {REAL: "answer", "shuffled": "control"}  # of `Prediction`, where not named like the condition
FIRST_SPLITS = ("heldout", "val")
OVERALL = ("qa_accuracy", "qa_vqa")  # scores of all questions; the other qa_... are those of one kind


@dataclass
class Prediction:
    """One answer, its references, and the answers given without the real features.

    control: with another medium's features · blank: with the mean of training media's features · none: without a
    medium · majority: the commonest reference of this kind of question, without a model · references: all right
    answers, `reference` being the first · meta: the text's own; where it lists what the medium holds (see
    `evaluation.tasks`) captions are scored by it too, and `kind_of` reads the kind of a question from it ·
    control_meta: the meta of the medium that stood in · score: the item's own score by name.

    predictions.jsonl has these fields.
    """

    id: str
    media: str
    prompt: str
    answer: str
    reference: str
    control: str | None = None
    meta: dict = field(default_factory=dict)
    control_meta: dict = field(default_factory=dict)
    references: list = field(default_factory=list)
    blank: str | None = None
    none: str | None = None
    majority: str | None = None
    score: dict[str, float] = field(default_factory=dict)

    def answer_under(self, condition: str = REAL) -> str | None:
        """The answer under "real" or one of `controls.BASELINES`; None where there is none."""
        return getattr(self, ANSWER_FIELDS.get(condition, condition))

    def set_answer(self, condition: str, words: str) -> None:
        """Set the answer under "real" or a control."""
        setattr(self, ANSWER_FIELDS.get(condition, condition), words)

    def right_answers(self) -> list:
        """All references."""
        return self.references or [self.reference]


class HasMeta(Protocol):
    """A `Prediction` or a `shards.texts.Text`."""

    @property
    def meta(self) -> Mapping: ...


def kind_of(item: HasMeta, name: str = "") -> str:
    """The kind of a question: the field `name` of its meta, else its `ask`, `answer_type` or `question_type`; "" where
    it has none.
    """
    ask = item.meta.get("ask")
    if name:
        candidates = [item.meta.get(name)]
    else:
        drawn = ask.get("kind") if isinstance(ask, dict) else None
        candidates = [drawn, item.meta.get("answer_type"), item.meta.get("question_type")]
    return next((kind for kind in candidates if isinstance(kind, str) and kind), "")


def split_order(names: Iterable[str]) -> list[str]:
    """Held-out splits with the one that training evaluates first: heldout, else val, then the others by name."""
    names = sorted(names)
    return [*(name for name in FIRST_SPLITS if name in names), *(name for name in names if name not in FIRST_SPLITS)]


def commonest(references: Sequence) -> str:
    """The reference given most often, the first of several."""
    return str(Counter(map(str, references)).most_common(1)[0][0])
