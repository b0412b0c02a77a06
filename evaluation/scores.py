"""The scores of answers under each control, and what a reader must know of them."""

import warnings
from collections.abc import Mapping, Sequence

from periscope.errors import RunError
from periscope.evaluation.asking import AskedTask
from periscope.evaluation.metrics import captions, clip_score
from periscope.evaluation.metrics.score import Score, ScoreWarning
from periscope.evaluation.report.table import as_numbers, table
from periscope.evaluation.summary import (
    CONTROLS,
    REAL,
    WHOLE,
    Prediction,
    kind_of,
    majority,
    scores,
    swapped,
    warnings_of,
)
from periscope.precompute.encoders import Encoder
from periscope.precompute.pipeline.similarity import TextTower
from periscope.shards.read import FeatureSet
from periscope.shards.texts import Text
from periscope.training.data.dataset import question_of

PREFIX = "A photo depicts"  # before each caption, as Hessel et al. 2021 have it


def refuse_clip_score(features: FeatureSet, texts: Sequence[Text]) -> None:
    """Raises RunError where the set holds no pooled features, or none of the texts is a caption of one picture."""
    if "pooled" not in features.manifest["features"]:
        raise RunError(f"--clip-score reads pooled features, which {features.path} lacks: encode with --kinds pooled")
    if not any(question_of(text) is None and len(text.media) == 1 for text in texts):
        raise RunError("--clip-score compares captions with their pictures, and these texts are questions")


def clip_scores(rows: Sequence[Prediction], features: FeatureSet, encoder: Encoder) -> dict[str, dict[str, Score]]:
    """Condition -> the CLIPScore of its captions against their pictures' pooled features, by the encoder's text tower;
    empty where nothing is a caption of one picture.

    Raises PrecomputeError for an encoder without a text tower.
    """
    captioned = [row for row in rows if not row.prompt and " " not in row.media]
    if not captioned:
        return {}
    tower, pictures = TextTower(encoder), features.read_many([row.media for row in captioned], "pooled").float()
    found = {}
    for condition in (REAL, *CONTROLS):
        said = {row.id: row.said(condition) for row in captioned if row.said(condition) is not None}
        if said:
            words = tower.vectors([f"{PREFIX} {text}" for text in said.values()])
            seen = {row.id: pictures[i].numpy() for i, row in enumerate(captioned) if row.id in said}
            found[condition] = {"caption_clip": clip_score(dict(zip(said, words.numpy(), strict=True)), seen)}
    return found


def all_scores(
    rows: Sequence[Prediction],
    texts: Sequence[Text],
    chosen: AskedTask,
    more: Mapping[str, Mapping[str, Score]] | None = None,
) -> tuple[dict[str, dict[str, Score]], list[str]]:
    """Condition -> name -> score, and what is to be said about them; `more` are further ones. Each prediction gets its
    own scores and its majority answer.
    """
    kinds, measures = chosen.kinds, chosen.task.measures if chosen.task else ()
    learnt = [
        (kind_of(text, kinds), text.turns[-1]["content"])
        for text in texts
        if text.split == "train" and text.media and question_of(text) and text.turns[-1]["role"] == "assistant"
    ]
    source = majority(rows, [] if {"letter", "boxes"} & set(measures) else learnt, kinds)
    wordy = [row for row in rows if not row.prompt]
    captions.prepare(str(text) for row in wordy for text in (*row.right(), *map(row.said, (REAL, *CONTROLS))) if text)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ScoreWarning)
        found = {condition: scores(rows, condition, measures, kinds) for condition in (REAL, *CONTROLS)}
    found = {name: dict(sorted((part | (more or {}).get(name, {})).items())) for name, part in found.items()}
    found = {condition: part for condition, part in found.items() if part or condition == REAL}
    for name, score in found[REAL].items():
        for row in rows:
            if row.id in score.each:
                row.score[name] = round(score.each[row.id], 4)
    said = list(dict.fromkeys(str(one.message) for one in caught if issubclass(one.category, ScoreWarning)))
    if wordy and not captions.available():
        said.append("no CIDEr, BLEU and ROUGE-L of captions: they need pip install -e '.[scores]'")
    if source:
        said.append(f"majority: the commonest answer of each kind of question, from {source}")
    return found, said


def summary(
    split: str, rows: Sequence[Prediction], found: Mapping[str, Mapping[str, Score]], said: Sequence[str], kinds: str
) -> tuple[dict, str]:
    """A split's part of eval.json, and what a person reads of it: the table, and below it what to know of it."""
    said = [*said, *warnings_of(rows, found, kinds)]
    other = swapped(rows)
    numbers = as_numbers(found) | {"swapped": other, "n": len(rows), "warnings": said}
    lines = [table(f"{split}: {len(rows)} answers", found)]
    if other:
        lines.append(f"  with another medium's features, {other['n']} questions valid for both are right for that "
                     f"other one at {other['qa_accuracy']:.3f} (for their own: {other['real']:.3f})")  # fmt: skip
    notes: dict[str, list[str]] = {}
    for name, note in numbers["notes"].items():
        if not name.startswith("qa_") or name in WHOLE:
            notes.setdefault(note, []).append(name)
    lines += [f"  {', '.join(names)}: {note}" for note, names in notes.items()]
    return numbers, "\n".join([*lines, *(f"  {warning}" for warning in said)])
