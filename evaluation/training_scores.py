"""Scores that cost next to nothing, for the held-out samples that train.py answers at every evaluation."""

from collections.abc import Mapping, Sequence

from periscope.evaluation.metrics.answers import word_f1
from periscope.evaluation.scoring.measures import MEASURES
from periscope.evaluation.scoring.prediction import Prediction


def training_scores(rows: Sequence[Mapping]) -> dict[str, float]:
    """Scores from 0 to 1 by name, of answers with id, media, prompt ("" for a caption), answer, reference and meta.

    Captions get `caption_f1` (the F1 of the words shared with the reference) and, for the demo's media, the scores of
    its task; questions get `qa_accuracy`. Scores that need many answers to mean something (CIDEr) are left to eval.py.
    """
    found: dict[str, float] = {}
    captions = {row["id"]: Prediction(**row) for row in rows if not row["prompt"]}
    questions = {row["id"]: Prediction(**row) for row in rows if row["prompt"]}
    for measure, predictions in (("demo_objects", captions), ("agreement", questions)):
        if predictions:
            answers = {key: row.answer for key, row in predictions.items()}
            scores = MEASURES[measure](answers, predictions)
            found |= {label: round(score.value, 4) for label, score in scores.items()}
    if captions:
        shared = [word_f1(row.answer, row.reference) for row in captions.values()]
        found["caption_f1"] = round(sum(shared) / len(shared), 4)
    return dict(sorted(found.items()))
