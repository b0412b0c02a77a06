"""Which texts make up which step: a function of the seed and the epoch alone.

An epoch permutes the media. The texts of one medium stay together, so that its features are read and projected once for
all of them. Windows of 64 steps are then sorted by length, which keeps padding low, and the steps are shuffled. For a
disk that is slow to seek, all of this happens within spans of media stored next to each other, and the spans are
permuted.
"""

import random
from array import array
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

WINDOW_STEPS = 64  # steps whose texts are sorted by length together


class ReadSpan(NamedTuple):
    """Consecutive steps, and the first and last feature-set row that their texts are about."""

    steps: list[Sequence[int]]
    first: int
    last: int


def epoch_steps(
    about: Sequence[int], lengths: Sequence[int], batch: int, seed: int, epoch: int, texts_per_medium: int = 0
) -> list[Sequence[int]]:
    """Return the epoch's steps, each at most `batch` indices into the texts; every text comes exactly once.

    about: (texts,) int, row of each text's medium in the feature set · lengths: (texts,) int, tokens ·
    texts_per_medium: texts of one medium that stay together (0: all of them; 1: none, as most published systems do).
    """
    spans = epoch_spans(about, lengths, batch, seed, epoch, texts_per_medium)
    return [step for span in spans for step in span.steps]


def epoch_spans(
    about: Sequence[int],
    lengths: Sequence[int],
    batch: int,
    seed: int,
    epoch: int,
    texts_per_medium: int = 0,
    span_media: int = 0,
) -> list[ReadSpan]:
    """Like `epoch_steps`, grouped into spans of `span_media` media with neighbouring rows (0: one span of all media).

    Texts left over at the end of a span, too few for a step, move to the next span.
    """
    rng = random.Random(f"{seed}:{epoch}")
    rows = np.asarray(about)
    texts, media_starts = _by_medium(rows, in_order=bool(span_media))
    group_starts, span_starts = _group(texts, media_starts, texts_per_medium, span_media, rng)
    bounds = group_starts + array("I", [len(texts)])
    sizes = np.diff(bounds)
    longest = np.maximum.reduceat(np.asarray(lengths)[texts], group_starts) if len(texts) else sizes
    pending: array[int] = array("I")
    spans: list[ReadSpan] = []
    group_spans = list(pairwise([*span_starts, len(group_starts)]))
    rng.shuffle(group_spans)
    for number, (first, last) in enumerate(group_spans):
        groups = array("I", range(first, last))
        rng.shuffle(groups)
        for window in _windows(groups, sizes, WINDOW_STEPS * batch):
            for group in sorted(window, key=longest.__getitem__):
                pending.extend(texts[bounds[group] : bounds[group + 1]].tolist())
        used = len(pending) if number == len(group_spans) - 1 else len(pending) - len(pending) % batch
        steps: list[Sequence[int]] = [pending[i : min(i + batch, used)] for i in range(0, used, batch)]
        pending = pending[used:]
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


def _windows(groups: Sequence[int], sizes: np.ndarray, min_texts: int) -> Iterator[list[int]]:
    """Cut `groups`, in order, into windows of at least `min_texts` texts; the last one may have fewer."""
    window: list[int] = []
    texts = 0
    for group in groups:
        window.append(group)
        texts += sizes[group]
        if texts >= min_texts:
            yield window
            window, texts = [], 0
    if window:
        yield window


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
