"""Scores of a few answers that cost nothing, for every look at the held-out samples while a training goes on."""

from collections.abc import Mapping, Sequence

from periscope.evaluation.measures import MEASURES
from periscope.evaluation.metrics.answers import word_f1
from periscope.evaluation.summary import Prediction


def training_scores(rows: Sequence[Mapping]) -> dict[str, float]:
    """Scores from 0 to 1 by name of answers with id, media, prompt ("" for a caption), answer, reference and meta: of
    captions `caption_f1`, the words shared with the reference, and what the task of their media counts; of questions
    `qa_accuracy`. What needs many answers to mean something (CIDEr) is left to eval.py.
    """
    found: dict[str, float] = {}
    for names, asked in ((("things",), False), (("agreement",), True)):
        part = {row["id"]: Prediction(**row) for row in rows if bool(row["prompt"]) == asked}
        said = {key: row.answer for key, row in part.items()}
        for name in names if part else ():
            found |= {label: round(score.value, 4) for label, score in MEASURES[name](said, part).items()}
        if part and not asked:
            found["caption_f1"] = round(sum(word_f1(one.answer, one.reference) for one in part.values()) / len(part), 4)
    return dict(sorted(found.items()))
