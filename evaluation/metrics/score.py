"""A score with its confidence interval."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from periscope.errors import ScoreError

ROUNDS, AT_ONCE = 1000, 2_000_000
FEW_MEDIA = 20  # below which the bootstrap's interval is much too narrow

Key = Any  # of an item: anything hashable (a Mapping of Hashable keys wouldn't take a dict of str)
Clusters = Mapping[Key, Key] | None  # key -> what items share, such as the image that questions are about


class ScoreWarning(UserWarning):
    """A score that is less meaningful than it looks; the message says why."""


@dataclass(frozen=True)
class Score:
    """A number over `n` items.

    low, high: its 95% interval by the percentile bootstrap (Efron 1979) with 1,000 draws of items, or of clusters where
    these are given (Field & Welsh 2007) · each: item -> its own score, where the score is their mean · note: how it was
    computed, where there is more than one way.
    """

    value: float
    low: float
    high: float
    n: int
    note: str = ""
    each: dict[Key, float] = field(default_factory=dict, repr=False)

    @property
    def interval(self) -> tuple[float, float]:
        """(low, high)."""
        return self.low, self.high


def mean(each: Mapping[Key, float], note: str = "", clusters: Clusters = None) -> Score:
    """The score whose value is the mean of `each`. Raises ScoreError when `each` is empty."""
    if not each:
        raise ScoreError("there is nothing to score: no predictions were given")
    values = np.array(list(each.values()), dtype=np.float64)
    value = values.mean()
    rows = np.stack([values - value, np.ones_like(values)], -1)
    low, high = interval(rows, lambda sums: sums[:, 0] / sums[:, 1], drawn(each, clusters))
    return Score(float(value), float(value + low), float(value + high), len(values), note, dict(each))


def drawn(keys: Iterable[Key], clusters: Clusters) -> list[Key] | None:
    """The cluster of each item, or None without clusters."""
    return None if clusters is None else [clusters[key] for key in keys]


def interval(
    rows: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    clusters: Sequence[Key] | None = None,
    rounds: int = ROUNDS,
) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of a statistic over `rounds` bootstrap draws (seeded).

    rows: `(items, k)`, what each item adds to the sums · statistic: sums `(draws, k)` -> `(draws,)` · clusters: items
    of the same cluster are drawn together, because questions about one image aren't independent.
    """
    if clusters is not None:
        numbers = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
        summed = np.zeros((len(numbers), rows.shape[1]), rows.dtype)
        np.add.at(summed, [numbers[name] for name in clusters], rows)
        rows = summed
    draws, found = np.random.default_rng(0), []
    step = max(1, AT_ONCE // rows.size)
    for start in range(0, rounds, step):
        items = draws.integers(len(rows), size=(min(step, rounds - start), len(rows)))
        found.append(statistic(np.stack([column[items].sum(-1) for column in rows.T], -1)))
    low, high = np.percentile(np.concatenate(found), (2.5, 97.5))
    return float(low), float(high)


def paired(predictions: Mapping, references: Mapping, few: int = 0, name: str = "") -> None:
    """Check that predictions and references have the same keys; warn when there are fewer than `few`.

    Raises ScoreError, naming the first key without a partner, and when there are no predictions.
    """
    for lonely, kind in ((predictions.keys() - references, "reference"), (references.keys() - predictions, "answer")):
        if lonely:
            first = min(lonely, key=str)
            raise ScoreError(f"{len(lonely)} items have no {kind} ({first!r}): score the same items on both sides")
    if not predictions:
        raise ScoreError("there is nothing to score: no predictions were given")
    if len(predictions) < few:
        warnings.warn(f"{name} of {len(predictions)} items means little; use at least {few}", ScoreWarning, 3)
