"""What a runtime reads: one text's words, by their ids, with vectors among them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

VECTOR = -1  # stands for a vector among ids
ROUNDING = 1e-4  # of a vector's largest value; batches of other sizes round a projector's output differently


@dataclass(frozen=True)
class MixedSequence:
    """One text in positions. ids: each word's id, `VECTOR` where a vector stands · vectors: these in their order,
    `(vectors, hidden_size)` in fp32 on the CPU.
    """

    ids: tuple[int, ...]
    vectors: torch.Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def followed_by(self, ids: Sequence[int]) -> "MixedSequence":
        """With words after it."""
        return MixedSequence((*self.ids, *ids), self.vectors)

    def first(self, count: int) -> "MixedSequence":
        """The first `count` positions."""
        return MixedSequence(self.ids[:count], self.vectors)

    def begins_like(self, other: "MixedSequence") -> int:
        """How many of its first positions are those of `other`; vectors that differ by rounding are the same."""
        pairs = zip(self.ids, other.ids, strict=False)
        same = next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), min(len(self), len(other)))
        places = [place for place in range(same) if self.ids[place] == VECTOR]
        if self.vectors is other.vectors or not places:
            return same
        ours, theirs = self.vectors[: len(places)], other.vectors[: len(places)]
        differ = (ours - theirs).abs().amax(-1) > ROUNDING * ours.abs().amax(-1)
        return places[int(differ.int().argmax())] if differ.any() else same

    def stretches(self, start: int, most: int) -> Iterator[tuple[int, tuple[int, ...] | torch.Tensor]]:
        """What stands from position `start` on, in pieces of at most `most` words or vectors, never both, each with its
        first position.
        """
        taken = self.ids[:start].count(VECTOR)
        while start < len(self):
            vectors = self.ids[start] == VECTOR
            end = start + 1
            while end < min(len(self), start + most) and (self.ids[end] == VECTOR) == vectors:
                end += 1
            yield start, self.vectors[taken : taken + end - start] if vectors else self.ids[start:end]
            taken += (end - start) * vectors
            start = end


class Runtime(Protocol):
    """Computes a language model outside of PyTorch. name: as --runtime takes it."""

    @property
    def name(self) -> str: ...

    def logits(self, sequence: MixedSequence, positions: Sequence[int]) -> torch.Tensor:
        """What the model expects after each of these positions, which ascend: `(positions, vocabulary)` in fp32 on the
        CPU.
        """
