"""Beam search for a model that reads its whole input anew for every token, which transformers can't search with."""

from collections.abc import Callable, Collection, Sequence

import torch

# Answers so far -> log probabilities `(answers, vocabulary)` of the token after each.
Scorer = Callable[[Sequence[Sequence[int]]], torch.Tensor]
Hypothesis = tuple[float, tuple[int, ...]]  # summed log probability, ids


def search_beams(scores: Scorer, beams: int, most: int, stop_ids: Collection[int]) -> list[int]:
    """The ids of the best answer of at most `most` tokens: the highest mean log probability per token, the stop token
    counted, as `generate` of transformers finds it with its defaults.

    Of each step's `2 * beams` best continuations those that go on stay, up to `beams`; one that stops is an answer only
    if it is among the best `beams`. The search ends when the best that goes on is no better than the worst of `beams`
    answers.
    """
    running: list[Hypothesis] = [(0.0, ())]
    finished: list[Hypothesis] = []
    for length in range(1, most + 1):
        continued = _best(scores([ids for _, ids in running]), running, 2 * beams)
        ended = [(total / length, ids) for total, ids in continued[:beams] if ids[-1] in stop_ids]
        finished = sorted([*finished, *ended], key=lambda each: -each[0])[:beams]
        running = [each for each in continued if each[1][-1] not in stop_ids][:beams]
        if not running or (len(finished) == beams and running[0][0] / length <= finished[-1][0]):
            return list(finished[0][1])
    cut_short = [(total / most, ids) for total, ids in running]
    return list(max([*finished, *cut_short], key=lambda each: each[0])[1])


def _best(logs: torch.Tensor, running: Sequence[Hypothesis], count: int) -> list[Hypothesis]:
    """The `count` best continuations of all hypotheses by one token, best first."""
    totals = logs + torch.tensor([total for total, _ in running], device=logs.device)[:, None]
    best = totals.flatten().topk(min(count, totals.numel()))
    vocabulary = logs.shape[-1]
    return [
        (value, (*running[place // vocabulary][1], place % vocabulary))
        for value, place in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
