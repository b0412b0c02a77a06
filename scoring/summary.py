"""From predictions to one flat table of scores."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from scoring.answers import same_answer, word_f1
from scoring.tasks import task_of


@dataclass
class Prediction:
    """One answer beside its reference, and the answer given from another medium's features (`control`), if any.

    `meta` is the text's own; where it lists what the medium holds (see scoring.tasks) captions are scored by it too,
    and `ask` names the kind of a question. `control_meta` is that of the medium that stood in.
    """

    id: str
    media: str
    prompt: str
    answer: str
    reference: str
    control: str | None = None
    meta: dict = field(default_factory=dict)
    control_meta: dict = field(default_factory=dict)


def scores(rows: Sequence[Prediction], control: bool = False) -> dict[str, float]:
    """Mean scores, each 0 to 1; with `control` those of the answers given from another medium's features.

    Captions: `caption_f1` (words shared with the reference) and, for the demo's media, the two scores of their task, as
    `caption_scene` and `caption_objects` of scenes.
    Questions: `qa_accuracy`, and `qa_<kind>` where texts name kinds.
    """
    found: dict[str, list[float]] = {}
    for row in rows:
        said = row.control if control else row.answer
        if said is None:
            continue
        for name, value in _of_one(row, said).items():
            found.setdefault(name, []).append(value)
    return {name: round(fmean(found[name]), 4) for name in sorted(found)}


def counts(rows: Sequence[Prediction]) -> dict[str, int]:
    """On how many answers each score rests."""
    found: dict[str, int] = {}
    for row in rows:
        for name in _of_one(row, row.answer):
            found[name] = found.get(name, 0) + 1
    return dict(sorted(found.items()))


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


def _of_one(row: Prediction, said: str) -> dict[str, float]:
    if row.prompt:
        right = float(same_answer(said, row.reference))
        ask = row.meta.get("ask")
        kind = ask.get("kind") if isinstance(ask, dict) else None
        return {"qa_accuracy": right} | ({f"qa_{kind}": right} if kind else {})
    found = {"caption_f1": word_f1(said, row.reference)}
    if of := task_of(row.meta):
        task, things = of
        found |= {task.whole: float(task.correct(said, things)), task.parts: task.recall(said, things)}
    return found
