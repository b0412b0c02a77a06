"""The control: the same questions, answered from another sample's features."""

import random
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

from periscope.evaluation.metrics.score import Score

OPEN = {"caption_cider": 10.0, "caption_clip": 2.5}  # scores that end elsewhere than at 1


def derangement(contents: Sequence[Hashable], seed: int = 0) -> list[int] | None:
    """A permutation that gives every sample another one with different content; None when there is no such permutation.

    `contents[i]` says what sample i shows; samples that show the same never stand in for each other.
    """
    if not contents:
        return None
    order = list(range(len(contents)))
    random.Random(seed).shuffle(order)
    order.sort(key=lambda i: str(contents[i]))  # samples with equal content become neighbours
    largest = max(Counter(contents).values())
    if 2 * largest > len(contents):
        return None
    stand_in = [0] * len(contents)
    for place, i in enumerate(order):
        stand_in[i] = order[(place + largest) % len(order)]
    return stand_in


def stand_ins(contents: Mapping[str, Hashable]) -> dict[str, str]:
    """For each medium one that shows something else (`contents` says what); empty when there is no such choice."""
    keys, order = list(contents), derangement(list(contents.values()))
    return {key: keys[i] for key, i in zip(keys, order, strict=True)} if order else {}


def gain(real: float, control: float) -> float:
    """How much of what the control leaves open is answered by looking: (real - control) / (1 - control)."""
    return (real - control) / (1 - control) if control < 1 else 0.0


def gain_of(name: str, real: Score, control: Score | None) -> float | None:
    """The gain of a named score; of CIDEr and CLIPScore, which nothing reaches the top of, the difference; None without
    a control, and for what is no measure of right answers (the share of yes).
    """
    if control is None or name == "pope_yes":
        return None
    return real.value - control.value if name in OPEN else gain(real.value, control.value)
