"""From predictions to tables of scores: the real answers, and beside them those of each control."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from periscope.evaluation.measures import MEASURES
from periscope.evaluation.metrics.answers import same_answer
from periscope.evaluation.metrics.score import Score, mean
from periscope.evaluation.tasks import task_of

REAL = "real"
CONTROLS = ("shuffled", "blank", "none", "majority")
WHOLE = ("qa_accuracy", "qa_vqa")  # scores of all questions; the other qa_... are those of one kind
FEW = 20  # media below which the bootstrap's interval is much too narrow
TEN = 10  # people who answer each question of VQA; its rule leaves a right answer among few others below 1
SAME, VARIED = 0.5, 0.3  # the commonest answer's share of all, and by how much more than among the references


@dataclass
class Prediction:
    """One answer beside its references, and the answers given without the real features.

    control: with another medium's features · blank: with the mean of the training media's · none: with no medium at
    all · majority: no model's, but the commonest reference of its kind of question. `references` are all that are
    right, `reference` the first. `meta` is the text's own; where it lists what the medium holds (see scoring.tasks)
    captions are scored by it too, and `kind_of` reads the kind of a question from it. `control_meta` is that of the
    medium that stood in. `score` is the item's own score by name.
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

    def said(self, condition: str = REAL) -> str | None:
        """The answer under a condition: "real" or one of `CONTROLS`."""
        return getattr(self, {REAL: "answer", "shuffled": "control"}.get(condition, condition))

    def right(self) -> list:
        """All references."""
        return self.references or [self.reference]


def scores(
    rows: Sequence[Prediction], condition: str = REAL, measures: Sequence[str] = (), kinds: str = ""
) -> dict[str, Score]:
    """Every score of the answers given under `condition`, by name, in order; of rows that have one.

    measures: which of `MEASURES`, for all rows; by default those of captions for rows without a prompt, and for
    questions the ten-answer rule where there are so many references, else agreement with any. Where questions have
    kinds (see `kind_of`) each has its share of a score, as `qa_<kind>`.
    """
    found: dict[str, Score] = {}
    answered = [row for row in rows if row.said(condition) is not None]
    for names, part in _by_measure(answered, measures):
        said = {row.id: row.said(condition) for row in part}
        by_id = {row.id: row for row in part}
        for name in names:
            for label, score in MEASURES[name](said, by_id).items():
                found[label] = score
                if label.startswith("qa_"):
                    found |= _by_kind(score, by_id, kinds)
    return dict(sorted(found.items()))


def kind_of(row: Prediction, name: str = "") -> str:
    """The kind of a question: `name` in its meta, else what `ask`, `answer_type` or `question_type` there say; ""
    where it has none.
    """
    ask = row.meta.get("ask")
    given = (row.meta.get(name),) if name else (
        ask.get("kind") if isinstance(ask, dict) else None, row.meta.get("answer_type"), row.meta.get("question_type")
    )  # fmt: skip
    return next((kind for kind in given if isinstance(kind, str) and kind), "")


def majority(rows: Sequence[Prediction], train: Iterable[tuple[str, str]] = (), kinds: str = "") -> str:
    """Fill in what always giving the commonest answer of each kind of question would say; returns where these come
    from.

    train: (kind, answer) of the texts learnt from. Kinds that these don't have take the commonest reference of the rows
    themselves, which favours the control.
    """
    learnt: dict[str, Counter] = {}
    for kind, answer in train:
        learnt.setdefault(kind, Counter())[answer] += 1
    own: dict[str, Counter] = {}
    for row in rows:
        if row.prompt:
            own.setdefault(kind_of(row, kinds), Counter())[_commonest(row.right())] += 1
    for row in rows:
        if row.prompt:
            kind = kind_of(row, kinds)
            row.majority = str((learnt.get(kind) or own[kind]).most_common(1)[0][0])
    if not own:
        return ""
    return "the training texts" if own.keys() <= learnt.keys() else "the references scored here, which favours it"


def swapped(rows: Sequence[Prediction]) -> dict[str, float] | None:
    """Questions valid for both media, answered from the other one's features and judged by the other one.

    `real` is the accuracy of the ordinary answers to the same questions. None where no such question was asked.
    """
    pairs = []
    for row in rows:
        ask, own, other = row.meta.get("ask"), task_of(row.meta), task_of(row.control_meta)
        alike = ask and own and other and own[0] is other[0] and row.control is not None
        truth = other[0].answer(ask, other[1]) if alike else None
        if truth is not None:
            pairs.append((same_answer(row.control, truth), same_answer(row.answer, row.reference)))
    if not pairs:
        return None
    for_other, real = zip(*pairs, strict=True)
    return {"qa_accuracy": round(fmean(for_other), 4), "real": round(fmean(real), 4), "n": len(pairs)}


def warnings_of(rows: Sequence[Prediction], found: Mapping[str, Mapping[str, Score]], kinds: str = "") -> list[str]:
    """What a reader of the table must know: that looking gains nothing, or that answers hardly vary."""
    real, shuffled = found[REAL], found.get("shuffled", {})
    said = []
    if shuffled and all(real[name].value - score.value < 0.02 for name, score in shuffled.items()):
        said.append("blind: another medium's features do as well as the real ones")
    if (media := len({row.media for row in rows})) < FEW:
        said.append(f"intervals over {media} media are too narrow; use at least {FEW}")
    groups: dict[str, list[Prediction]] = {}
    for row in rows:
        kind = kind_of(row, kinds)
        name = f"questions ({kind})" if kind else "questions"
        groups.setdefault(name if row.prompt else "captions", []).append(row)
    for name, group in groups.items():
        (answer, count), (_, usual) = (
            Counter(texts).most_common(1)[0]
            for texts in ([row.answer for row in group], [_commonest(row.right()) for row in group])
        )
        if len(group) > 1 and count > SAME * len(group) and count - usual > VARIED * len(group):
            said.append(f"answers hardly vary: {count} of {len(group)} {name} get {answer[:60]!r}, where "
                        f"the commonest reference is right for {usual}")  # fmt: skip
    return said


def _by_measure(rows: Sequence[Prediction], measures: Sequence[str]) -> list[tuple[Sequence[str], list[Prediction]]]:
    if measures:
        return [(measures, list(rows))] if rows else []
    captions = [row for row in rows if not row.prompt]
    ten = [row for row in rows if row.prompt and len(row.right()) >= TEN]
    fewer = [row for row in rows if row.prompt and len(row.right()) < TEN]
    parts = ((("captions", "things"), captions), (("vqa",), ten), (("agreement",), fewer))
    return [(names, part) for names, part in parts if part]


def _by_kind(score: Score, rows: Mapping[str, Prediction], kinds: str) -> dict[str, Score]:
    parts: dict[str, dict[str, float]] = {}
    for key, value in score.each.items():
        parts.setdefault(kind_of(rows[key], kinds), {})[key] = value
    media = {key: row.media for key, row in rows.items()}
    return {f"qa_{kind}": mean(part, score.note, media) for kind, part in parts.items() if kind}


def _commonest(references: Sequence) -> str:
    return str(Counter(map(str, references)).most_common(1)[0][0])
