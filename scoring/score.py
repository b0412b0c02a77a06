"""A score with how sure it is."""

import warnings
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field

import numpy as np

ROUNDS, AT_ONCE = 1000, 2_000_000


class ScoreError(Exception):
    """Predictions and references that can't be scored; the message says what to do."""


@dataclass(frozen=True)
class Score:
    """One number over `n` items. low, high: its 95% interval by the percentile bootstrap over items (Efron 1979), 1,000
    draws · each: item -> its own score, where the score is a mean of such · note: how it was computed, where there is
    more than one way.
    """

    value: float
    low: float
    high: float
    n: int
    note: str = ""
    each: dict[Hashable, float] = field(default_factory=dict, repr=False)


def mean(each: Mapping[Hashable, float], note: str = "") -> Score:
    """The score whose value is the mean of `each`. Raises ScoreError when there is nothing."""
    if not each:
        raise ScoreError("there is nothing to score: no predictions were given")
    values = np.array(list(each.values()), dtype=np.float64)
    low, high = interval(lambda rows: values[rows].mean(-1), len(values))
    return Score(float(values.mean()), low, high, len(values), note, dict(each))


def interval(statistic: Callable[[np.ndarray], np.ndarray], n: int, rounds: int = ROUNDS) -> tuple[float, float]:
    """The 2.5th and the 97.5th percentile of `statistic` over `rounds` draws of `n` items with replacement, the same
    draws for the same `n`. `statistic` takes item numbers (draws, n) and gives (draws,).
    """
    draws, found = np.random.default_rng(0), []
    step = max(1, AT_ONCE // max(1, n))
    for start in range(0, rounds, step):
        found.append(statistic(draws.integers(n, size=(min(step, rounds - start), n))))
    low, high = np.percentile(np.concatenate(found), (2.5, 97.5))
    return float(low), float(high)


def paired(predictions: Mapping, references: Mapping, few: int = 0, name: str = "") -> None:
    """Check that each prediction has its references and each reference its prediction; warn of fewer than `few`.

    Raises ScoreError naming the first key that lacks its partner.
    """
    for lonely, kind in ((predictions.keys() - references, "reference"), (references.keys() - predictions, "answer")):
        if lonely:
            first = min(lonely, key=str)
            raise ScoreError(f"{len(lonely)} items have no {kind} ({first!r}): score the same items on both sides")
    if not predictions:
        raise ScoreError("there is nothing to score: no predictions were given")
    if len(predictions) < few:
        warnings.warn(f"{name} of {len(predictions)} items means little; use at least {few}", stacklevel=3)
