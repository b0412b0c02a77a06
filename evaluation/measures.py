"""The scores that a set of answers can be given, by the name under which tasks ask for them.

Each takes the answers by id and the predictions (`scoring.summary.Prediction`) by the same ids, and gives `Score` by
label. Labels that begin with `qa_` are means over questions, of which each kind of question then gets its share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from periscope.evaluation.metrics import captions
from periscope.evaluation.metrics.answers import same_answer, word_f1
from periscope.evaluation.metrics.boxes import box_accuracy
from periscope.evaluation.metrics.choices import gqa_accuracy, letter_accuracy, pope, says_yes, vsr_accuracy
from periscope.evaluation.metrics.score import Score, mean
from periscope.evaluation.metrics.vqa import normal_form, vqa_accuracy
from periscope.evaluation.tasks import task_of

if TYPE_CHECKING:
    from periscope.evaluation.summary import Prediction

Said = Mapping[str, str]
Rows = Mapping[str, "Prediction"]


def _captions(said: Said, rows: Rows) -> dict[str, Score]:
    shared, media = (
        {key: max(word_f1(text, one) for one in rows[key].right()) for key, text in said.items()},
        _media(rows),
    )
    found = {"caption_f1": mean(shared, clusters=media)}
    if captions.available() and len(said) > 1:
        references = _references(rows)
        found |= {
            "caption_bleu4": captions.bleu(said, references, clusters=media),
            "caption_cider": captions.cider(said, references, media),
            "caption_rouge_l": captions.rouge_l(said, references, media),
        }
    return found


def _meteor(said: Said, rows: Rows) -> dict[str, Score]:
    return {"caption_meteor": captions.meteor(said, _references(rows), _media(rows))} if captions.has_java() else {}


def _things(said: Said, rows: Rows) -> dict[str, Score]:
    each: dict[str, dict[str, float]] = {}
    for key, text in said.items():
        if of := task_of(rows[key].meta):
            task, things = of
            each.setdefault(task.whole, {})[key] = float(task.correct(text, things))
            each.setdefault(task.parts, {})[key] = task.recall(text, things)
    return {name: mean(values, clusters=_media(rows)) for name, values in each.items()}


def _agreement(said: Said, rows: Rows) -> dict[str, Score]:
    each = {key: float(any(same_answer(text, one) for one in rows[key].right())) for key, text in said.items()}
    return {"qa_accuracy": mean(each, "case, punctuation and articles set aside", _media(rows))}


def _exact(said: Said, rows: Rows) -> dict[str, Score]:
    each = {
        key: float(any(normal_form(text.strip()) == normal_form(one.strip()) for one in rows[key].right()))
        for key, text in said.items()
    }
    return {"qa_accuracy": mean(each, "equal after VQA's normalisation of both", _media(rows))}


def _vqa(way: str, label: str = "qa_vqa") -> Callable[[Said, Rows], dict[str, Score]]:
    return lambda said, rows: {label: vqa_accuracy(said, _references(rows), way, _media(rows))}


def _gqa(said: Said, rows: Rows) -> dict[str, Score]:
    return {"qa_accuracy": gqa_accuracy(said, _firsts(rows), _media(rows))}


def _letter(said: Said, rows: Rows) -> dict[str, Score]:
    return {"qa_accuracy": letter_accuracy(said, _firsts(rows), _media(rows))}


def _vsr(said: Said, rows: Rows) -> dict[str, Score]:
    true = {key: row.right()[0] == "True" for key, row in rows.items()}
    return {"qa_accuracy": vsr_accuracy(said, true, _media(rows))}


def _pope(said: Said, rows: Rows) -> dict[str, Score]:
    true, media = _firsts(rows), _media(rows)
    right = {key: float(says_yes(text) == (true[key].strip().lower() == "yes")) for key, text in said.items()}
    found = {"qa_accuracy": mean(right, clusters=media)}
    found |= {f"pope_{name}": score for name, score in pope(said, true, media).items() if name != "accuracy"}
    categories = dict.fromkeys(row.meta.get("question_type") for row in rows.values())
    for category in categories if len(categories) > 1 else ():
        part = [key for key, row in rows.items() if row.meta.get("question_type") == category]
        parts = pope({key: said[key] for key in part}, {key: true[key] for key in part}, media)
        found[f"pope_f1_{category}"] = parts["f1"]
    return found


def _boxes(said: Said, rows: Rows) -> dict[str, Score]:
    return {"box_accuracy": box_accuracy(said, _firsts(rows), clusters=_media(rows))}


MEASURES: dict[str, Callable[[Said, Rows], dict[str, Score]]] = {
    "captions": _captions,
    "meteor": _meteor,
    "things": _things,
    "agreement": _agreement,
    "exact": _exact,
    "vqa": _vqa("official"),
    "vqa-always": _vqa("always", "vqa_always"),
    "vqa-m4c": _vqa("m4c"),
    "gqa": _gqa,
    "letter": _letter,
    "vsr": _vsr,
    "pope": _pope,
    "boxes": _boxes,
}


def _references(rows: Rows) -> dict[str, list]:
    return {key: row.right() for key, row in rows.items()}


def _media(rows: Rows) -> dict[str, str]:
    """What intervals are drawn over: answers about one medium aren't independent."""
    return {key: row.media for key, row in rows.items()}


def _firsts(rows: Rows) -> dict[str, object]:
    return {key: row.right()[0] for key, row in rows.items()}
