"""The measures that a set of answers can be scored by, under the names that tasks use for them.

Each takes answers by id and the predictions by the same ids, and returns a `Score` by label. Labels that begin with
`qa_` are means over questions; each kind of question then gets a score of its own.
"""

import sys
from collections.abc import Callable, Mapping
from functools import cache
from statistics import median

from periscope.evaluation.metrics import captions
from periscope.evaluation.metrics.answers import same_answer, set_f1, word_f1, words
from periscope.evaluation.metrics.boxes import box_accuracy
from periscope.evaluation.metrics.choices import (
    gqa_accuracy,
    gqa_bare_accuracy,
    letter_accuracy,
    pope,
    says_yes,
    unanswerable,
    vsr_accuracy,
)
from periscope.evaluation.metrics.score import Score, mean
from periscope.evaluation.metrics.vqa import Normalisation, normal_form, vqa_accuracy
from periscope.evaluation.scoring.prediction import Prediction
from periscope.evaluation.tasks import task_of

Answers = Mapping[str, str]
Rows = Mapping[str, Prediction]
Measure = Callable[[Answers, Rows], dict[str, Score]]
SHORT_CAPTION = 4  # words; scores of n-grams up to four tell nothing of captions with a median at most this long


def _captions(answers: Answers, rows: Rows) -> dict[str, Score]:
    media = _media(rows)
    shared = {key: max(word_f1(text, right) for right in rows[key].right_answers()) for key, text in answers.items()}
    found = {"caption_f1": mean(shared, clusters=media)}
    if captions.available() and len(answers) > 1:
        references = _references(rows)
        found |= {
            "caption_bleu4": captions.bleu(answers, references, clusters=media),
            "caption_cider": captions.cider(answers, references, media),
            "caption_rouge_l": captions.rouge_l(answers, references, media),
        }
    return found


def _short_captions(answers: Answers, rows: Rows) -> dict[str, Score]:
    found: dict[str, Score] = {}
    for label, compare in (("caption_exact", same_answer), ("caption_set_f1", set_f1)):
        if has_short_captions(rows):
            each = {
                key: max(float(compare(text, right)) for right in rows[key].right_answers())
                for key, text in answers.items()
            }
            found[label] = mean(each, clusters=_media(rows))
    return found


def has_short_captions(rows: Rows) -> bool:
    """Whether the median reference has at most four words, as labels and tags do."""
    return caption_length(rows) <= SHORT_CAPTION


def caption_length(rows: Rows) -> float:
    """The median number of words of the references (characters, in scripts without spaces)."""
    return median(len(words(str(right))) for row in rows.values() for right in row.right_answers())


def _meteor(answers: Answers, rows: Rows) -> dict[str, Score]:
    if not captions.has_java():
        return {}
    return {"caption_meteor": captions.meteor(answers, _references(rows), _media(rows))}


def _spice(answers: Answers, rows: Rows) -> dict[str, Score]:
    if lacking := captions.spice_lacks():
        _say_once(f"note: the score leaves SPICE out, which {lacking}")
        return {}
    return {"caption_spice": captions.spice(answers, _references(rows), _media(rows))}


@cache
def _say_once(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def _demo_objects(answers: Answers, rows: Rows) -> dict[str, Score]:
    each: dict[str, dict[str, float]] = {}
    for key, text in answers.items():
        if of := task_of(rows[key].meta):
            task, objects = of
            each.setdefault(task.whole, {})[key] = float(task.correct(text, objects))
            each.setdefault(task.parts, {})[key] = task.recall(text, objects)
    return {name: mean(values, clusters=_media(rows)) for name, values in each.items()}


def _agreement(answers: Answers, rows: Rows) -> dict[str, Score]:
    each = {
        key: float(any(same_answer(text, right) for right in rows[key].right_answers()))
        for key, text in answers.items()
    }
    return {"qa_accuracy": mean(each, "case, punctuation and articles set aside", _media(rows))}


def _exact(answers: Answers, rows: Rows) -> dict[str, Score]:
    def normal(text: str) -> str:
        return normal_form(text.strip()) or text.strip().lower()  # "." and "A" would both become nothing

    each = {
        key: float(any(normal(text) == normal(right) for right in rows[key].right_answers()))
        for key, text in answers.items()
    }
    return {"qa_accuracy": mean(each, "equal after VQA's normalisation of both", _media(rows))}


def _vqa(normalise: Normalisation, label: str = "qa_vqa") -> Measure:
    return lambda answers, rows: {label: vqa_accuracy(answers, _references(rows), normalise, _media(rows))}


def _gqa(answers: Answers, rows: Rows) -> dict[str, Score]:
    return {"qa_accuracy": gqa_accuracy(answers, _first_references(rows), _media(rows))}


def _gqa_bare(answers: Answers, rows: Rows) -> dict[str, Score]:
    return {"qa_accuracy": gqa_bare_accuracy(answers, _first_references(rows), _media(rows))}


def _vizwiz(answers: Answers, rows: Rows) -> dict[str, Score]:
    found, media = _vqa("vizwiz")(answers, rows), _media(rows)
    told = {key: not row.meta["answerable"] for key, row in rows.items() if "answerable" in row.meta}
    if told:
        said = {key: normal_form(answers[key].strip()) == "unanswerable" for key in told}
        scores = unanswerable(said, told, {key: media[key] for key in told})
        found |= {f"unanswerable_{name}": score for name, score in scores.items()}
    return found


def _letter(answers: Answers, rows: Rows) -> dict[str, Score]:
    return {"qa_accuracy": letter_accuracy(answers, _first_references(rows), _media(rows))}


def _vsr(answers: Answers, rows: Rows) -> dict[str, Score]:
    true = {key: right == "True" for key, right in _first_references(rows).items()}
    return {"qa_accuracy": vsr_accuracy(answers, true, _media(rows))}


def _pope(answers: Answers, rows: Rows) -> dict[str, Score]:
    true, media = _first_references(rows), _media(rows)
    right = {key: float(says_yes(text) == (true[key].strip().lower() == "yes")) for key, text in answers.items()}
    found = {"qa_accuracy": mean(right, clusters=media)}
    found |= {f"pope_{name}": score for name, score in pope(answers, true, media).items() if name != "accuracy"}
    categories = dict.fromkeys(row.meta.get("question_type") for row in rows.values())
    for category in categories if len(categories) > 1 else ():
        keys = [key for key, row in rows.items() if row.meta.get("question_type") == category]
        scores = pope({key: answers[key] for key in keys}, {key: true[key] for key in keys}, media)
        found[f"pope_f1_{category}"] = scores["f1"]
    return found


def _boxes(answers: Answers, rows: Rows) -> dict[str, Score]:
    return {"box_accuracy": box_accuracy(answers, _first_references(rows), clusters=_media(rows))}


MEASURES: dict[str, Measure] = {
    "captions": _captions,
    "short_captions": _short_captions,
    "meteor": _meteor,
    "spice": _spice,
    "demo_objects": _demo_objects,
    "agreement": _agreement,
    "exact": _exact,
    "vqa": _vqa("official"),
    "vqa-always": _vqa("always", "vqa_always"),
    "vqa-m4c": _vqa("m4c"),
    "vizwiz": _vizwiz,
    "gqa": _gqa,
    "gqa-bare": _gqa_bare,
    "letter": _letter,
    "vsr": _vsr,
    "pope": _pope,
    "boxes": _boxes,
}


def _references(rows: Rows) -> dict[str, list]:
    return {key: row.right_answers() for key, row in rows.items()}


def _first_references(rows: Rows) -> dict:
    return {key: row.right_answers()[0] for key, row in rows.items()}


def _media(rows: Rows) -> dict[str, str]:
    """The clusters that intervals are drawn over: answers about one medium aren't independent."""
    return {key: row.media for key, row in rows.items()}
