"""Two comparisons made from predictions alone: the commonest answer, and questions judged by the other medium."""

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean

from periscope.evaluation.metrics.answers import same_answer
from periscope.evaluation.scoring.prediction import Prediction, commonest, kind_of
from periscope.evaluation.tasks import task_of


def fill_majority(rows: Sequence[Prediction], train: Iterable[tuple[str, str]] = (), kinds: str = "") -> str:
    """Set each question's `majority` to the commonest answer of its kind, and return where these answers come from.

    train: (kind, answer) of the training texts. Kinds missing there take the commonest reference of `rows`, which
    favours the baseline.
    """
    learnt: dict[str, Counter] = {}
    for kind, answer in train:
        learnt.setdefault(kind, Counter())[answer] += 1
    own: dict[str, Counter] = {}
    for row in rows:
        if row.prompt:
            own.setdefault(kind_of(row, kinds), Counter())[commonest(row.right_answers())] += 1
    for row in rows:
        if row.prompt:
            kind = kind_of(row, kinds)
            row.majority = str((learnt.get(kind) or own[kind]).most_common(1)[0][0])
    if not own:
        return ""
    return "the training texts" if own.keys() <= learnt.keys() else "the references scored here, which favours it"


def swapped(rows: Sequence[Prediction]) -> dict[str, float] | None:
    """Accuracy of the shuffled answers to questions that are valid for both media, judged by the medium that stood in.

    `real` is the accuracy of the ordinary answers to the same questions. None when no such question was asked.
    """
    pairs = []
    for row in rows:
        ask, own, other = row.meta.get("ask"), task_of(row.meta), task_of(row.control_meta)
        if not (ask and own and other and own[0] is other[0]) or row.control is None:
            continue
        truth = other[0].answer(ask, other[1])
        if truth is not None:
            pairs.append((same_answer(row.control, truth), same_answer(row.answer, row.reference)))
    if not pairs:
        return None
    for_other, real = zip(*pairs, strict=True)
    return {"qa_accuracy": round(fmean(for_other), 4), "real": round(fmean(real), 4), "n": len(pairs)}
