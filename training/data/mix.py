"""Several feature sets in one training, mixed by weight.

Every step takes its texts from all sets, in numbers that keep to the weights. Each set's texts come in an order of its
own (training.order) and begin anew when they are through, whatever the others do. An epoch of the mix has as many texts
as the sets hold together. What makes a step is a function of the sets, the weights, the seed, the batch and the step's
number alone.
"""

from array import array
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, groupby
from pathlib import Path

from torch.utils.data import Dataset

from periscope.errors import RunError
from periscope.training.data.dataset import Batch, TextFeatureDataset, TextIndex, TrainingSteps
from periscope.training.data.order import split_evenly, steps_per_epoch


def named_sets(given: str | Sequence[str]) -> dict[str, float | None]:
    """What --features names: path -> weight, None for all where none is given.

    Raises RunError for a weight that isn't above 0, for weights on some sets only, and for a set named twice.
    """
    found: dict[str, float | None] = {}
    for one in [given] if isinstance(given, str) else given:
        path, equals, number = one.rpartition("=")
        try:
            weight = float(number) if equals else None
        except ValueError:
            weight = None
        if weight is None or Path(one).is_dir():
            path, weight = one, None
        if weight is not None and not 0 < weight < float("inf"):
            raise RunError(f"--features {one}: a weight must be above 0")
        if path in found:
            raise RunError(f"--features names {path} twice")
        found[path] = weight
    if len(set(weight is None for weight in found.values())) > 1:
        raise RunError(f"--features {' '.join(given)}: give every set a weight, as a=0.7 b=0.3, or none")
    return found


class Quotas:
    """How many texts of each set make which step: one after the other, each text is of the set that is furthest behind
    its share. So after any number of texts no set is a whole text ahead of its share.
    """

    def __init__(self, weights: Sequence[float], batch: int):
        self.shares, self.batch = [weight / sum(weights) for weight in weights], batch
        self._restart()

    def _restart(self) -> None:
        self._step, self._counts = 0, [0] * len(self.shares)

    def before(self, step: int) -> list[int]:
        """The number of texts of each set in all steps before `step`."""
        if step < self._step:
            self._restart()
        while self._step < step:
            self._step += 1
            for number in range((self._step - 1) * self.batch + 1, self._step * self.batch + 1):
                behind = [share * number - count for share, count in zip(self.shares, self._counts, strict=True)]
                self._counts[behind.index(max(behind))] += 1
        return list(self._counts)


class MixedSteps(Dataset):
    """As `training.data.Steps`, of several sets with a weight each (None: their numbers of texts)."""

    def __init__(
        self,
        sets: Sequence[tuple[TextFeatureDataset, TextIndex]],
        weights: Sequence[float] | None,
        batch: int,
        seed: int,
        texts_per_medium: int = 0,
        rank: int = 0,
        ranks: int = 1,
        runs: Sequence[int] = (),
    ):
        self.batch, self.seed, self.rank, self.ranks = batch, seed, rank, ranks
        weights = weights or [len(kept.texts) for _, kept in sets]
        self.shares = [weight / sum(weights) for weight in weights]
        sizes = [max(1, round(share * batch)) for share in self.shares]
        runs = runs or [0] * len(sets)
        self.parts = [
            TrainingSteps(*one, size, seed, texts_per_medium, run=run)
            for one, size, run in zip(sets, sizes, runs, strict=True)
        ]
        self._quotas = Quotas(self.shares, batch)
        self._flat: list[tuple[int, array]] = [(-1, array("I"))] * len(sets)

    @property
    def per_epoch(self) -> int:
        return steps_per_epoch(sum(len(part.kept.texts) for part in self.parts), self.batch)

    def counts(self, steps: int) -> list[int]:
        """How many texts of each set the first `steps` steps have."""
        return self._quotas.before(steps)

    def __getitem__(self, step: int) -> Batch:
        for part, place in zip(self.parts, self._quotas.before(step), strict=True):
            epoch, place = divmod(place, len(part.kept.texts))
            part.read_ahead(epoch, place // part.batch)
        return self.share(step, self.rank, self.ranks)

    def share(self, step: int, rank: int = 0, ranks: int = 1) -> Batch:
        """The part of a step that falls to one of `ranks` processes; without these, all of it."""
        first, last = self._quotas.before(step), self._quotas.before(step + 1)
        chosen = [
            (number, self._text(number, place))
            for number in range(len(self.parts))
            for place in range(first[number], last[number])
        ]
        lengths = [self.parts[number].kept.lengths[i] for number, i in chosen]
        targets = sum(self.parts[number].kept.targets[i] for number, i in chosen)
        batches = []
        for number, some in groupby(chosen[split_evenly(lengths, ranks)[rank]], key=lambda one: one[0]):
            part = self.parts[number]
            epoch = first[number] // len(part.kept.texts)  # where the step begins: a medium has one view in a step
            batches.append(part.batch_of([part.kept.texts[i] for _, i in some], epoch))
        return replace(Batch.join(batches), whole=(len(chosen), targets), draw=f"{self.seed}/{step}")

    def _text(self, number: int, place: int) -> int:
        """Which text of a set is next, after `place` texts of it."""
        part = self.parts[number]
        epoch, place = divmod(place, len(part.kept.texts))
        if self._flat[number][0] != epoch:
            self._flat[number] = epoch, array("I", chain.from_iterable(part.order(epoch)))
        return self._flat[number][1][place]
