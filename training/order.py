"""Which texts make which step: a function of the seed and the epoch alone.

An epoch permutes the media; a medium's texts travel together, so that its features are read and projected once for
all of them. Windows of 64 steps are then sorted by length, which leaves little padding, and the steps shuffled.
"""

import random
from collections.abc import Sequence

WINDOW = 64


def epoch_steps(
    media: Sequence[str], lengths: Sequence[int], batch: int, seed: int, epoch: int, texts_per_medium: int = 0
) -> list[list[int]]:
    """Return the epoch's steps, each a list of at most `batch` indices into the texts; every text comes exactly once.

    `media[i]` names what text i is about, `lengths[i]` is its length in tokens. Up to `texts_per_medium` texts of one
    medium stay together (0: all of them; 1: none, as most published systems do).
    """
    chance = random.Random(f"{seed}:{epoch}")
    groups: dict[str, list[int]] = {}
    for i, medium in enumerate(media):
        groups.setdefault(medium, []).append(i)
    parts = []
    for texts in groups.values():
        chance.shuffle(texts)
        size = texts_per_medium or len(texts)
        parts += [texts[i : i + size] for i in range(0, len(texts), size)]
    chance.shuffle(parts)
    order: list[int] = []
    window: list[list[int]] = []
    held = 0
    for k, part in enumerate(parts):
        window.append(part)
        held += len(part)
        if held >= WINDOW * batch or k == len(parts) - 1:
            window.sort(key=lambda texts: max(lengths[i] for i in texts))
            order += [i for texts in window for i in texts]
            window, held = [], 0
    steps = [order[i : i + batch] for i in range(0, len(order), batch)]
    chance.shuffle(steps)
    return steps


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
