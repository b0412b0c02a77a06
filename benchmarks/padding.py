"""How much of a step is padding? Batches by length, against random batches, with lengths like LLaVA's."""

from benchmarks._synthetic import caption_lengths
from periscope.training.data.order import epoch_steps

TEXTS, BATCHES = 50_000, (8, 32, 128)
MEDIUM = 16  # tokens of a picture before each caption: the longer, the less is padded


def measure(rounds: int) -> dict[str, dict]:
    """{"padding of batches of N, against N at random": {"ratio", "share": of all positions, "at random"}}.

    Counted over an epoch, so one round is enough, whatever `rounds` says.
    """
    lengths = [MEDIUM + length for length in caption_lengths(TEXTS)]
    media = range(TEXTS)
    found = {}
    for batch in BATCHES:
        ours = _padding(lengths, epoch_steps(media, lengths, batch, seed=0, epoch=0))
        plain = _padding(lengths, [range(first, min(first + batch, TEXTS)) for first in range(0, TEXTS, batch)])
        found[f"padding of batches of {batch}, against as many at random"] = {
            "ratio": ours / plain,
            "share": ours,
            "at random": plain,
        }
    return found


def _padding(lengths: list[int], steps: list) -> float:
    padded = sum(len(step) * max(lengths[i] for i in step) for step in steps)
    return 1 - sum(lengths) / padded
