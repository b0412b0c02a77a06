"""How much of a step is padding, and how uneven are the steps? Against random batches, with lengths like LLaVA's."""

import numpy as np

from benchmarks._synthetic import caption_lengths
from periscope.training.data.order import TextOrder

TEXTS, BATCHES = 50_000, (8, 32, 128)
MEDIUM = 16  # tokens of a picture before each caption: the longer, the less is padded


def measure(rounds: int) -> dict[str, dict]:
    """{"padding of batches of N, against N at random": {"ratio", "share": of all positions, "at random", "fewest" and
    "most": target tokens of a step over the mean}}.

    Counted over an epoch, so one round is enough, whatever `rounds` says.
    """
    targets = caption_lengths(TEXTS)
    lengths = [MEDIUM + length for length in targets]
    media = range(TEXTS)
    found = {}
    for batch in BATCHES:
        steps = TextOrder(media, lengths, targets, batch, seed=0).steps(0)
        ours = _padding(lengths, steps)
        learnt = [sum(targets[i] for i in step) / (np.mean(targets) * batch) for step in steps if len(step) == batch]
        plain = _padding(lengths, [range(first, min(first + batch, TEXTS)) for first in range(0, TEXTS, batch)])
        found[f"padding of batches of {batch}, against as many at random"] = {
            "ratio": ours / plain,
            "share": ours,
            "at random": plain,
            "fewest": min(learnt),
            "most": max(learnt),
        }
    return found


def _padding(lengths: list[int], steps: list) -> float:
    padded = sum(len(step) * max(lengths[i] for i in step) for step in steps)
    return 1 - sum(lengths) / padded
