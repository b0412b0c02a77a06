"""Which texts make up which step: a function of the seed and the epoch alone.

An epoch permutes the media. The texts of one medium stay together, so that its features are read and projected once for
all of them. Windows of 64 steps are then sorted by length, which keeps padding low; the longest texts are mixed with
the shortest, and these with longer ones, as far as it takes for steps of about as many target tokens; and the steps are
shuffled. For a disk that is slow to seek, all of this happens within spans of media stored next to each other, and the
spans are permuted.
"""

import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

WINDOW_STEPS = 64  # steps whose texts are sorted by length together
# A step has at most so many times the mean number of target tokens, and at least the mean over it: the first of these
# for which the epoch's padding stays below the share.
SPREADS = (1.5, 2.0, 3.0, 5.0)
MOST_PADDING = 0.08


class ReadSpan(NamedTuple):
    """Consecutive steps, and the first and last feature-set row that their texts are about."""

    steps: list[Sequence[int]]
    first: int
    last: int


@dataclass(frozen=True)
class TextOrder:
    """The order in which texts are trained on.

    about: (texts,) int, row of each text's medium in the feature set · lengths: (texts,) int, tokens · targets:
    (texts,) int, how many of them are targets · batch: texts of a step · texts_per_medium: texts of one medium that
    stay together (0: all of them; 1: none, as most published systems do) · span_media: train on this many media with
    neighbouring rows before moving on (0: any order).
    """

    about: Sequence[int]
    lengths: Sequence[int]
    targets: Sequence[int]
    batch: int
    seed: int
    texts_per_medium: int = 0
    span_media: int = 0

    def steps(self, epoch: int) -> list[Sequence[int]]:
        """An epoch's steps, each at most `batch` indices into the texts; every text comes exactly once."""
        return [step for span in self.spans(epoch) for step in span.steps]

    def spans(self, epoch: int) -> list[ReadSpan]:
        """The same, grouped into spans; one where any order will do.

        Texts left over at the end of a span, too few for a step, move to the next span.
        """
        rng = random.Random(f"{self.seed}:{epoch}")
        rows = np.asarray(self.about)
        if not len(rows):
            return []
        texts, media_starts = _by_medium(rows, in_order=bool(self.span_media))
        group_starts, span_starts = _group(texts, media_starts, self.texts_per_medium, self.span_media, rng)
        bounds = np.append(group_starts, len(texts)).astype(np.int64)
        sizes = np.diff(bounds)
        longest = np.repeat(np.maximum.reduceat(np.asarray(self.lengths)[texts], bounds[:-1]), sizes)
        learnt = np.repeat(np.add.reduceat(np.asarray(self.targets, float)[texts], bounds[:-1]) / sizes, sizes)
        group_spans = list(pairwise([*span_starts, len(sizes)]))
        rng.shuffle(group_spans)
        windows = _windows(group_spans, bounds, self.batch, rng)
        arranged = _arranged(windows, longest, learnt, self.batch)
        spans: list[ReadSpan] = []
        for (first, last), places in zip(group_spans, arranged, strict=True):
            order = array("I", texts[places].tolist())
            steps: list[Sequence[int]] = [order[i : i + self.batch] for i in range(0, len(order), self.batch)]
            rng.shuffle(steps)
            span_rows = rows[texts[bounds[first] : bounds[last]]]
            spans.append(ReadSpan(steps, int(span_rows.min()), int(span_rows.max())))
        return spans


def _by_medium(rows: np.ndarray, in_order: bool) -> tuple[np.ndarray, list[int]]:
    """All texts sorted by medium, and where each medium starts: by row, or in order of first appearance."""
    _, first, medium = np.unique(rows, return_index=True, return_inverse=True)
    if not in_order:
        medium = np.argsort(np.argsort(first))[medium]
    texts = np.argsort(medium, kind="stable").astype(np.uint32)
    return texts, [0, *(np.flatnonzero(np.diff(medium[texts])) + 1).tolist()] if len(texts) else []


def _group(
    texts: np.ndarray, media_starts: Sequence[int], texts_per_medium: int, span_media: int, rng: random.Random
) -> tuple["array[int]", "array[int]"]:
    """Shuffle each medium's texts in place and cut them into groups that stay together.

    Returns where each group starts in `texts`, and at which group each span starts.
    """
    offset = rng.randrange(span_media) if span_media else 0  # so that the spans of another epoch start elsewhere
    group_starts, span_starts = array("I"), array("I")
    for number, (begin, end) in enumerate(pairwise([*media_starts, len(texts)])):
        if not number or (span_media and (number + offset) % span_media == 0):
            span_starts.append(len(group_starts))
        if end - begin > 1:
            shuffled = texts[begin:end].tolist()
            rng.shuffle(shuffled)
            texts[begin:end] = shuffled
        group_starts.extend(range(begin, end, texts_per_medium or end - begin))
    return group_starts, span_starts


def _windows(
    group_spans: Sequence[tuple[int, int]], bounds: np.ndarray, batch: int, rng: random.Random
) -> list[list[np.ndarray]]:
    """The windows of each span: places of its texts, group by group in random order, `WINDOW_STEPS` steps of them. All
    are whole steps, but for the epoch's last; what is left of a span comes first in the next one.
    """
    left = np.empty(0, np.int64)
    spans = []
    for number, (first, last) in enumerate(group_spans):
        shuffled = list(range(first, last))
        rng.shuffle(shuffled)
        groups = np.array(shuffled)
        sizes = bounds[groups + 1] - bounds[groups]
        before = np.cumsum(sizes) - sizes
        places = np.arange(sizes.sum()) + np.repeat(bounds[groups] - before, sizes)
        places = np.concatenate([left, places])
        used = len(places) if number == len(group_spans) - 1 else len(places) - len(places) % batch
        places, left = places[:used], places[used:]
        size = WINDOW_STEPS * batch
        spans.append([places[i : i + size] for i in range(0, used, size)])
    return spans


def _arranged(
    spans: Sequence[Sequence[np.ndarray]], longest: np.ndarray, learnt: np.ndarray, batch: int
) -> list[np.ndarray]:
    """Each span's places in the order of its steps: windows sorted by length, then `_balanced` with the first of
    `SPREADS` that keeps padding low; with none where none does.
    """
    by_length = [[window[np.argsort(longest[window], kind="stable")] for window in span] for span in spans]
    mean = float(learnt.mean())
    for spread in SPREADS:
        arranged = [[window[_balanced(learnt[window], batch, mean, spread)] for window in span] for span in by_length]
        if _padding([window for span in arranged for window in span], longest, batch) < MOST_PADDING:
            break
    else:
        arranged = by_length
    return [np.concatenate([*span, np.empty(0, np.int64)]) for span in arranged]


def _padding(windows: Sequence[np.ndarray], longest: np.ndarray, batch: int) -> float:
    """The share of padding in steps that are padded to the longest text, if a medium's texts are as long as its longest
    one.
    """
    padded = sum(
        len(step) * longest[step].max()
        for window in windows
        for step in (window[i : i + batch] for i in range(0, len(window), batch))
    )
    return 1 - sum(longest[window].sum() for window in windows) / padded


def _balanced(targets: np.ndarray, batch: int, mean: float, spread: float) -> np.ndarray:
    """An order of texts sorted by length whose steps of `batch` texts have at most `spread` times the `mean` of target
    tokens, and at least `mean` over `spread`, where the texts allow it. targets: (texts,) float.

    A step padded to its longest text wastes what its mean falls short of that. So a step that would have too many
    targets gets as few of the shortest texts as bring it to the limit, and what is left of the shortest is spread over
    steps of texts that are just long enough.
    """
    order: list[range] = []
    sums = np.concatenate([[0.0], np.cumsum(targets)])
    low, high, some = batch * mean / spread, batch * mean * spread, np.arange(batch + 1)
    steps = sums[batch:] - sums[:-batch]  # the targets of a step that begins with text i and goes on in order
    first, last = 0, len(targets)
    while last - first >= 2 * batch and (steps[first : last - batch + 1] > high).any():
        totals = sums[last] - sums[last - some] + sums[first + batch - some] - sums[first]
        longs = int(max(np.flatnonzero(totals <= high), default=1)) or 1
        order += [range(last - longs, last), range(first, first + batch - longs)]
        first, last = first + batch - longs, last - longs
    few = np.flatnonzero(steps[first : max(first, last - batch + 1)] < low)
    start = middle = min(last, first + int(few[-1]) + batch // 2 + 1) if len(few) else first
    while last - middle >= batch and first < start:
        some = some[: start - first + 1]
        totals = sums[first + some] - sums[first] + sums[middle + batch - some] - sums[middle]
        shorts = int(max(np.flatnonzero(totals >= low), default=some[-1]))
        order += [range(first, first + shorts), range(middle, middle + batch - shorts)]
        first, middle = first + shorts, middle + batch - shorts
    return np.concatenate([*order, range(first, start), range(middle, last)]).astype(np.int64)


def steps_per_epoch(texts: int, batch: int) -> int:
    """The number of steps in one epoch."""
    return -(-texts // batch)


def split_evenly(lengths: Sequence[int], shares: int) -> list[slice]:
    """Cut a step's texts, in order, into `shares` slices so that the longest has as few tokens as possible.

    The last slices may be empty. Neighbours stay together, so that a medium's features are mostly projected by one
    process only.
    """
    low, high = max(lengths, default=0), sum(lengths)
    while low < high:
        middle = (low + high) // 2
        if len(_slice_ends(lengths, middle)) <= shares:
            high = middle
        else:
            low = middle + 1
    ends = _slice_ends(lengths, high)
    ends += [len(lengths)] * (shares - len(ends))
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def _slice_ends(lengths: Sequence[int], max_tokens: int) -> list[int]:
    """Where slices of at most `max_tokens` tokens end."""
    ends, tokens = [], 0
    for i, length in enumerate(lengths):
        if tokens + length > max_tokens:
            ends.append(i)
            tokens = 0
        tokens += length
    return [*ends, len(lengths)]
