"""Answers chosen from a few: a word, yes or no, true or false, a letter."""

import re
import string
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from periscope.evaluation.metrics.score import Clusters, Key, Score, drawn, interval, mean, paired

Answers = Mapping[Key, str]


def gqa_accuracy(predictions: Answers, references: Answers, clusters: Clusters = None) -> Score:
    """The share of answers equal to the reference, as in GQA's eval.py (Hudson & Manning 2019, arXiv 1902.09506), after
    lower-casing and dropping a final period as LLaVA and vlm-evaluation do. Raises ScoreError as `score.paired`.
    """
    paired(predictions, references)
    right = {key: float(_plain(predictions[key]) == _plain(true)) for key, true in references.items()}
    return mean(right, clusters=clusters)


def gqa_bare_accuracy(predictions: Answers, references: Answers, clusters: Clusters = None) -> Score:
    """The same as Cobra's harness has it (https://github.com/h-zhao1997/vlm-evaluation): answers lose all punctuation
    and capitals, references nothing. Raises ScoreError as `score.paired`.
    """
    paired(predictions, references)
    bare = {key: said.translate(str.maketrans("", "", string.punctuation)).lower() for key, said in predictions.items()}
    return mean({key: float(bare[key] == true) for key, true in references.items()}, clusters=clusters)


def unanswerable(said: Mapping[Key, bool], true: Mapping[Key, bool], clusters: Clusters = None) -> dict[str, Score]:
    """How well questions without an answer are told from others (VizWiz, Gurari et al. 2018, arXiv 1802.08218): F1 and
    average precision of calling them so, under the names "f1" and "ap".

    said: whether a question was called unanswerable · true: whether it is. Raises ScoreError as `score.paired`.
    """
    paired(said, true)
    table = _counts(np.array([said[key] for key in true]), np.array(list(true.values())))
    return {name: _ratio(formula, table, true, clusters) for name, formula in UNANSWERABLE.items()}


def letter_accuracy(predictions: Answers, references: Answers, clusters: Clusters = None) -> Score:
    """The share of answers that name the right option by its letter (AI2D, Visual7W, ScienceQA); see `letter`. Raises
    ScoreError as `score.paired`.
    """
    paired(predictions, references)
    right = {key: float(letter(predictions[key]) == true.strip().upper()) for key, true in references.items()}
    return mean(right, clusters=clusters)


def letter(answer: str) -> str | None:
    """The option that an answer names, A to J, or None: the first letter that stands alone, in brackets or before a
    period. A lower-case "a" in a sentence is an article.
    """
    answer = answer.strip()
    alone = re.match(r"\(?([A-Ja-j])\)?(?:[.:)]|\s*$)", answer)
    found = alone or re.search(r"(?:^|[\s(])([B-H]|A(?=[.):,]|\s*$))(?![\w'])", answer)
    return found[1].upper() if found else None


def vsr_accuracy(predictions: Answers, references: Mapping[Key, bool], clusters: Clusters = None) -> Score:
    """The share of statements about an image that are correctly called true or false (VSR, Liu et al. 2023, arXiv
    2205.00363). An answer counts as true unless it has the word "false" or "no", as in Mamba-VL's evaluation. Raises
    ScoreError as `score.paired`.
    """
    paired(predictions, references)
    denied = {key: bool({"false", "no"} & set(re.findall(r"\w+", said.lower()))) for key, said in predictions.items()}
    return mean({key: float(denied[key] != true) for key, true in references.items()}, clusters=clusters)


def pope(predictions: Answers, references: Answers, clusters: Clusters = None) -> dict[str, Score]:
    """POPE (Li et al. 2023, arXiv 2305.10355): accuracy, precision, recall and F1 of "yes", and the share of "yes"
    answers, under the names "accuracy", "precision", "recall", "f1", "yes".

    References are "yes" and "no"; answers are read by `says_yes`. A ratio with denominator 0 is 0. Raises ScoreError as
    `score.paired`.
    """
    paired(predictions, references)
    keys = list(references)
    said = np.array([says_yes(predictions[key]) for key in keys])
    true = np.array([references[key].strip().lower() == "yes" for key in keys])
    table = _counts(said, true)
    return {name: _ratio(formula, table, keys, clusters) for name, formula in POPE.items()}


def says_yes(answer: str) -> bool:
    """Whether an answer means yes, as in POPE's evaluate.py (https://github.com/AoiDragon/POPE): it has none of the
    words No, not, no before the first period.
    """
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


def _counts(said: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Whether each is a true positive, false positive, true negative, false negative: `(items, 4)`."""
    return np.stack([said & true, said & ~true, ~said & ~true, ~said & true], -1).astype(np.int64)


def _ratio(formula: Callable[..., np.ndarray], table: np.ndarray, keys: Iterable[Key], clusters: Clusters) -> Score:
    low, high = interval(table, lambda sums: formula(*sums.T), drawn(keys, clusters))
    return Score(float(formula(*table.sum(0)[:, None])[0]), low, high, len(table))


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), 0.0)


# From the counts of true positives, false positives, true negatives, false negatives.
POPE: dict[str, Callable[..., np.ndarray]] = {
    "accuracy": lambda tp, fp, tn, fn: _share(tp + tn, tp + fp + tn + fn),
    "precision": lambda tp, fp, tn, fn: _share(tp, tp + fp),
    "recall": lambda tp, fp, tn, fn: _share(tp, tp + fn),
    "f1": lambda tp, fp, tn, fn: _share(2 * tp, 2 * tp + fp + fn),
    "yes": lambda tp, fp, tn, fn: _share(tp + fp, tp + fp + tn + fn),
}


# Average precision of answers that are yes or no has two thresholds: those called so, and all.
UNANSWERABLE: dict[str, Callable[..., np.ndarray]] = {
    "f1": POPE["f1"],
    "ap": lambda tp, fp, tn, fn: (
        _share(tp, tp + fn) * _share(tp, tp + fp) + (1 - _share(tp, tp + fn)) * _share(tp + fn, tp + fp + tn + fn)
    ),
}


def _plain(answer: str) -> str:
    return answer.strip().rstrip(".").lower()
