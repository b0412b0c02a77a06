"""Losses and answers of a language model that a runtime computes, one text at a time."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from periscope.adapters.generation.beam_search import search_beams
from periscope.adapters.generation.decoding import token_chooser
from periscope.adapters.generation.streaming import TokenQueue
from periscope.adapters.lm.cross_entropy import cross_entropy
from periscope.adapters.lm.runtimes.sequence import MixedSequence, Runtime

POSITIONS_AT_ONCE = 256  # whose logits are in memory


def target_losses(runtime: Runtime, sequence: MixedSequence, targets: Sequence[tuple[int, int]]) -> torch.Tensor:
    """The cross-entropy of each target `(position, id)`, which ascend, after what stands before it: `(targets,)`."""
    losses = []
    for first in range(0, len(targets), POSITIONS_AT_ONCE):
        chunk = targets[first : first + POSITIONS_AT_ONCE]
        logits = runtime.logits(sequence, [position - 1 for position, _ in chunk])
        losses.append(cross_entropy(logits, torch.arange(len(chunk)), torch.tensor([token for _, token in chunk])))
    return torch.cat(losses)


def next_logits(runtime: Runtime, sequence: MixedSequence) -> torch.Tensor:
    """Logits `(1, vocabulary)` of the token after a sequence."""
    return runtime.logits(sequence, [len(sequence) - 1])


def generate(
    runtime: Runtime,
    sequence: MixedSequence,
    stop: Collection[int],
    max_new_tokens: int,
    decoding: Mapping[str, Any],
    streamer: TokenQueue | None = None,
) -> list[int]:
    """The ids of the answer to a prompt, with the stop token that ends it. decoding: as `Decoding.arguments` gives it ·
    streamer: gets the ids as they are made.

    Raises AdapterError as `token_chooser`.
    """
    choose, beams = token_chooser(decoding), decoding.get("num_beams", 1)
    if beams > 1:

        def scores(answers: Sequence[Sequence[int]]) -> torch.Tensor:
            return torch.cat([next_logits(runtime, sequence.followed_by(ids)) for ids in answers]).log_softmax(-1)

        return search_beams(scores, beams, max_new_tokens, stop)
    ids: list[int] = []
    while len(ids) < max_new_tokens and not (ids and ids[-1] in stop):
        token = choose(next_logits(runtime, sequence.followed_by(ids)))
        if streamer is not None:
            streamer.put(token)
        ids.append(int(token))
    return ids
