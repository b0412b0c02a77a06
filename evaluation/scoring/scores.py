"""From predictions to scores: those of the real answers, and the same under each control."""

import warnings
from collections.abc import Mapping, Sequence

from periscope.evaluation.controls import BASELINES, REAL
from periscope.evaluation.metrics import captions
from periscope.evaluation.metrics.score import Score, ScoreWarning, mean
from periscope.evaluation.scoring.baselines import fill_majority
from periscope.evaluation.scoring.measures import MEASURES
from periscope.evaluation.scoring.prediction import Prediction, kind_of
from periscope.shards.texts import Text
from periscope.training.data.dataset import question_of

Scores = dict[str, dict[str, Score]]  # condition -> name -> score
TEN_ANSWERS = 10  # VQA's rule scores a right answer among fewer references below 1
OWN_CHOICES = {"letter", "boxes"}  # measures whose answers differ from question to question, whatever was trained on


def scores(
    rows: Sequence[Prediction], condition: str = REAL, measures: Sequence[str] = (), kinds: str = ""
) -> dict[str, Score]:
    """Every score of the answers given under `condition`, by name, sorted. Rows without such an answer don't count.

    measures: names in `MEASURES`, applied to all rows. By default rows without a prompt get those of captions, and
    questions VQA's ten-answer rule where they have ten references, else agreement with any reference.
    kinds: the field of a question's meta that tells its kind (see `kind_of`); each kind gets `qa_<kind>`.
    """
    found: dict[str, Score] = {}
    answered = [row for row in rows if row.answer_under(condition) is not None]
    for names, part in _by_measure(answered, measures):
        by_id = {row.id: row for row in part}
        answers = {row.id: text for row in part if (text := row.answer_under(condition)) is not None}
        for name in names:
            for label, score in MEASURES[name](answers, by_id).items():
                found[label] = score
                if label.startswith("qa_"):
                    found |= _by_kind(score, by_id, kinds)
    return dict(sorted(found.items()))


def all_scores(
    rows: Sequence[Prediction],
    texts: Sequence[Text],
    measures: Sequence[str] = (),
    kinds: str = "",
    extra: Mapping[str, Mapping[str, Score]] | None = None,
    done: Scores | None = None,
) -> tuple[Scores, list[str]]:
    """The scores under "real" and under each control that has any, and notes about them.

    texts: the feature set's texts; the majority baseline comes from those trained on · extra: further scores by
    condition (CLIPScore) · done: scores of an earlier call by condition, which aren't computed again. Each prediction
    gets its own scores and its majority answer.
    """
    train = [] if OWN_CHOICES & set(measures) else _training_answers(texts, kinds)
    majority_source = fill_majority(rows, train, kinds)
    captioned = [row for row in rows if not row.prompt]
    captions.prepare(text for row in captioned for text in _all_words(row))
    found: Scores = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ScoreWarning)
        for condition in (REAL, *BASELINES):
            if condition in (done or {}):
                found[condition] = dict(done or {})[condition]
                continue
            under = scores(rows, condition, measures, kinds) | dict((extra or {}).get(condition, {}))
            if under or condition == REAL:
                found[condition] = dict(sorted(under.items()))
    for name, score in found[REAL].items():
        for row in rows:
            if row.id in score.each:
                row.score[name] = round(score.each[row.id], 4)
    notes = list(dict.fromkeys(str(one.message) for one in caught if issubclass(one.category, ScoreWarning)))
    if captioned and not captions.available():
        notes.append("no CIDEr, BLEU and ROUGE-L of captions: they need pip install 'periscope-adapters[scores]'")
    if majority_source:
        notes.append(f"majority: the commonest answer of each kind of question, from {majority_source}")
    return found, notes


def _by_measure(rows: Sequence[Prediction], measures: Sequence[str]) -> list[tuple[Sequence[str], list[Prediction]]]:
    if measures:
        return [(measures, list(rows))] if rows else []
    captioned = [row for row in rows if not row.prompt]
    ten = [row for row in rows if row.prompt and len(row.right_answers()) >= TEN_ANSWERS]
    fewer = [row for row in rows if row.prompt and len(row.right_answers()) < TEN_ANSWERS]
    parts = ((("captions", "short_captions", "demo_objects"), captioned), (("vqa",), ten), (("agreement",), fewer))
    return [(names, part) for names, part in parts if part]


def _by_kind(score: Score, rows: Mapping[str, Prediction], kinds: str) -> dict[str, Score]:
    parts: dict[str, dict[str, float]] = {}
    for key, value in score.each.items():
        parts.setdefault(kind_of(rows[key], kinds), {})[key] = value
    media = {key: row.media for key, row in rows.items()}
    return {f"qa_{kind}": mean(part, score.note, media) for kind, part in parts.items() if kind}


def _training_answers(texts: Sequence[Text], kinds: str) -> list[tuple[str, str]]:
    """(kind, answer) of each question about a medium that is trained on."""
    return [
        (kind_of(text, kinds), text.turns[-1]["content"])
        for text in texts
        if text.split == "train" and text.media and question_of(text) and text.turns[-1]["role"] == "assistant"
    ]


def _all_words(row: Prediction) -> list[str]:
    """The references and the answers under every condition, which are tokenised together."""
    answers = [row.answer_under(condition) for condition in (REAL, *BASELINES)]
    return [str(text) for text in (*row.right_answers(), *answers) if text]
