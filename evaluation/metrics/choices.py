"""Answers that are one of few: a word, yes or no, true or false, a letter."""

import re
from collections.abc import Callable, Hashable, Mapping

import numpy as np

from periscope.evaluation.metrics.score import Clusters, Score, drawn, interval, mean, paired

Answers = Mapping[Hashable, str]


def gqa_accuracy(predictions: Answers, references: Answers, clusters: Clusters = None) -> Score:
    """The share of answers equal to the reference, letter for letter, as GQA's eval.py (Hudson & Manning 2019) counts
    them; before, a final period goes and letters become small, as LLaVA and vlm-evaluation prepare answers for it.
    Raises ScoreError as `scoring.score.paired`.
    """
    paired(predictions, references)
    right = {key: float(_plain(predictions[key]) == _plain(true)) for key, true in references.items()}
    return mean(right, clusters=clusters)


def letter_accuracy(predictions: Answers, references: Answers, clusters: Clusters = None) -> Score:
    """The share of answers that name the right option, a single letter (AI2D, Visual7W, ScienceQA): the first letter
    that stands alone, in brackets or before a period. Raises ScoreError as `scoring.score.paired`.
    """
    paired(predictions, references)
    right = {key: float(letter(predictions[key]) == true.strip().upper()) for key, true in references.items()}
    return mean(right, clusters=clusters)


def letter(answer: str) -> str | None:
    """The option that an answer names, A to J, or None. A small "a" in a sentence is an article."""
    answer = answer.strip()
    alone = re.match(r"\(?([A-Ja-j])\)?(?:[.:)]|\s*$)", answer)
    found = alone or re.search(r"(?:^|[\s(])([B-H]|A(?=[.):,]|\s*$))(?![\w'])", answer)
    return found[1].upper() if found else None


def vsr_accuracy(predictions: Answers, references: Mapping[Hashable, bool], clusters: Clusters = None) -> Score:
    """The share of statements about a picture that are rightly called true or false (Liu et al. 2023). Everything but
    an answer with the word "false" or "no" counts as true, as Mamba-VL's evaluation has it. Raises ScoreError as
    `scoring.score.paired`.
    """
    paired(predictions, references)
    denied = {key: bool({"false", "no"} & set(re.findall(r"\w+", said.lower()))) for key, said in predictions.items()}
    return mean({key: float(denied[key] != true) for key, true in references.items()}, clusters=clusters)


def pope(predictions: Answers, references: Answers, clusters: Clusters = None) -> dict[str, Score]:
    """POPE (Li et al. 2023): {"accuracy", "precision", "recall", "f1", "yes"}, of which "yes" is the share of answers
    that say so. References are "yes" and "no". Answers are read as in the official evaluate.py: up to the first
    period, "no" where a word is No, not or no, else "yes". Precision, recall and F1 are of "yes"; 0 where nothing says
    or is so. Raises ScoreError as `scoring.score.paired`.
    """
    paired(predictions, references)
    keys = list(references)
    said = np.array([says_yes(predictions[key]) for key in keys])
    true = np.array([references[key].strip().lower() == "yes" for key in keys])
    table = np.stack([said & true, said & ~true, ~said & ~true, ~said & true], -1).astype(np.int64)
    found = {}
    for name, formula in POPE.items():
        low, high = interval(table, lambda sums, formula=formula: formula(*sums.T), drawn(keys, clusters))
        found[name] = Score(float(formula(*table.sum(0)[:, None])[0]), low, high, len(keys))
    return found


def says_yes(answer: str) -> bool:
    """How POPE's evaluate.py (https://github.com/AoiDragon/POPE) reads an answer."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), 0.0)


# From the counts of yes said rightly, yes said wrongly, no said rightly, no said wrongly.
POPE: dict[str, Callable[..., np.ndarray]] = {
    "accuracy": lambda tp, fp, tn, fn: _share(tp + tn, tp + fp + tn + fn),
    "precision": lambda tp, fp, tn, fn: _share(tp, tp + fp),
    "recall": lambda tp, fp, tn, fn: _share(tp, tp + fn),
    "f1": lambda tp, fp, tn, fn: _share(2 * tp, 2 * tp + fp + fn),
    "yes": lambda tp, fp, tn, fn: _share(tp + fp, tp + fp + tn + fn),
}


def _plain(answer: str) -> str:
    return answer.strip().rstrip(".").lower()
