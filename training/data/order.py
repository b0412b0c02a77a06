"""Which texts make which step: a function of the seed and the epoch alone.

An epoch permutes the media; a medium's texts travel together, so that its features are read and projected once for
all of them. Windows of 64 steps are then sorted by length, which leaves little padding, and the steps shuffled. For a
disk that is slow to seek all this is done within runs of media that lie beside each other, and the runs are permuted.
"""

import random
from array import array
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

WINDOW = 64


class ReadSpan(NamedTuple):
    """Steps that are taken one after the other, and the first and the last of what their texts are about."""

    steps: list[Sequence[int]]
    first: int
    last: int


def epoch_steps(
    about: Sequence[int], lengths: Sequence[int], batch: int, seed: int, epoch: int, texts_per_medium: int = 0
) -> list[Sequence[int]]:
    """Return the epoch's steps, each at most `batch` indices into the texts; every text comes exactly once.

    `about[i]` numbers what text i is about, `lengths[i]` is its length in tokens. Up to `texts_per_medium` texts of one
    medium stay together (0: all of them; 1: none, as most published systems do).
    """
    runs = epoch_runs(about, lengths, batch, seed, epoch, texts_per_medium)
    return [step for one in runs for step in one.steps]


def epoch_runs(
    about: Sequence[int],
    lengths: Sequence[int],
    batch: int,
    seed: int,
    epoch: int,
    texts_per_medium: int = 0,
    run: int = 0,
) -> list[ReadSpan]:
    """As `epoch_steps`, run by run: in each so many media with neighbouring numbers (0: all media in one run). Texts
    that don't fill a step are among the next run's.
    """
    chance = random.Random(f"{seed}:{epoch}")
    about = np.asarray(about)
    texts, media = _by_medium(about, in_order=bool(run))
    shift = chance.randrange(run) if run else 0  # so that the runs of another epoch begin elsewhere
    starts, runs = array("I"), array("I")
    for number, (begin, end) in enumerate(pairwise([*media, len(texts)])):
        if not number or (run and (number + shift) % run == 0):
            runs.append(len(starts))
        if end - begin > 1:
            some = texts[begin:end].tolist()
            chance.shuffle(some)
            texts[begin:end] = some
        starts.extend(range(begin, end, texts_per_medium or end - begin))
    bounds = starts + array("I", [len(texts)])
    sizes = np.diff(bounds)
    longest = np.maximum.reduceat(np.asarray(lengths)[texts], starts) if len(texts) else sizes
    order, found = array("I"), []
    spans = list(pairwise([*runs, len(starts)]))
    chance.shuffle(spans)
    for number, span in enumerate(spans):
        parts = array("I", range(*span))
        chance.shuffle(parts)
        for window in _windows(parts, sizes, WINDOW * batch):
            for part in sorted(window, key=longest.__getitem__):
                order.extend(texts[bounds[part] : bounds[part + 1]].tolist())
        whole = len(order) if number == len(spans) - 1 else len(order) - len(order) % batch
        its_steps = [order[i : min(i + batch, whole)] for i in range(0, whole, batch)]
        order = order[whole:]
        chance.shuffle(its_steps)
        numbers = about[texts[bounds[span[0]] : bounds[span[1]]]]
        found.append(ReadSpan(its_steps, int(numbers.min()), int(numbers.max())))
    return found


def _by_medium(about: np.ndarray, in_order: bool) -> tuple[np.ndarray, list[int]]:
    """All texts medium by medium, and where each medium's begin: by their numbers, or as they first appear."""
    _, first, medium = np.unique(about, return_index=True, return_inverse=True)
    if not in_order:
        medium = np.argsort(np.argsort(first))[medium]
    texts = np.argsort(medium, kind="stable").astype(np.uint32)
    return texts, [0, *(np.flatnonzero(np.diff(medium[texts])) + 1).tolist()] if len(texts) else []


def _windows(parts: Sequence[int], sizes: Sequence[int], least: int) -> Iterator[list[int]]:
    """Cut `parts`, in their order, into windows with at least so many texts, but for the last."""
    window, held = [], 0
    for part in parts:
        window.append(part)
        held += sizes[part]
        if held >= least:
            yield window
            window, held = [], 0
    if window:
        yield window


def steps_per_epoch(texts: int, batch: int) -> int:
    """The number of steps in one epoch."""
    return -(-texts // batch)


def split_evenly(lengths: Sequence[int], parts: int) -> list[slice]:
    """Cut a step's texts, in order, into `parts` of which the longest has as few tokens as possible (the last may be
    empty). Neighbours stay together, so that a medium's features are mostly projected by one process only.
    """
    least, most = max(lengths, default=0), sum(lengths)
    while least < most:
        middle = (least + most) // 2
        if len(_fill(lengths, middle)) <= parts:
            most = middle
        else:
            least = middle + 1
    ends = _fill(lengths, most)
    ends += [len(lengths)] * (parts - len(ends))
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def _fill(lengths: Sequence[int], most: int) -> list[int]:
    """Where parts of at most `most` tokens end."""
    ends, held = [], 0
    for i, length in enumerate(lengths):
        if held + length > most:
            ends.append(i)
            held = 0
        held += length
    return [*ends, len(lengths)]
