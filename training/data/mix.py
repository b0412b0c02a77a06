"""Several feature sets in one training, mixed by weight.

Every step takes texts from all sets, in proportion to the weights. Each set has its own order of texts (training.data.
order) and starts over when it is through, whatever the other sets do. An epoch of the mix has as many texts as all sets
together. A step is a function of the sets, the weights, the seed, the batch size and the step's number alone.
"""

from array import array
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, groupby
from operator import itemgetter

from torch.utils.data import Dataset

from periscope.adapters.prompting.segments import Segment
from periscope.training.data.dataset import Batch, TextFeatureDataset, TextIndex
from periscope.training.data.order import split_evenly, steps_per_epoch
from periscope.training.data.steps import TrainingSteps


class Quotas:
    """How many texts of each set make up which step.

    Texts are dealt one by one, each to the set that is furthest behind its share. So no set is ever a whole text ahead.
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


class MixedSteps(Dataset[Batch]):
    """Like `TrainingSteps`, for several sets with a weight each (None: their numbers of texts)."""

    def __init__(
        self,
        sets: Sequence[tuple[TextFeatureDataset, TextIndex]],
        weights: Sequence[float] | None,
        batch: int,
        seed: int,
        texts_per_medium: int = 0,
        rank: int = 0,
        ranks: int = 1,
        span_media: Sequence[int] = (),
        shift: float = 0.0,
    ):
        self.batch, self.seed, self.rank, self.ranks = batch, seed, rank, ranks
        weights = weights or [len(index.texts) for _, index in sets]
        self.shares = [weight / sum(weights) for weight in weights]
        batches = [max(1, round(share * batch)) for share in self.shares]
        self.by_set = [
            TrainingSteps(dataset, index, set_batch, seed, texts_per_medium, span_media=span, shift=shift)
            for (dataset, index), set_batch, span in zip(sets, batches, span_media or [0] * len(sets), strict=True)
        ]
        self._quotas = Quotas(self.shares, batch)
        self._epoch_texts: list[tuple[int, array[int]]] = [(-1, array("I"))] * len(sets)  # (epoch, its texts in order)

    @property
    def per_epoch(self) -> int:
        return steps_per_epoch(sum(len(steps.index.texts) for steps in self.by_set), self.batch)

    def counts(self, steps: int) -> list[int]:
        """How many texts of each set the first `steps` steps have."""
        return self._quotas.before(steps)

    def __getitem__(self, step: int) -> Batch:
        for steps, count in zip(self.by_set, self._quotas.before(step), strict=True):
            epoch, position = divmod(count, len(steps.index.texts))
            steps.read_ahead(epoch, position // steps.batch)
        return self.share(step, self.rank, self.ranks)

    def share(self, step: int, rank: int = 0, ranks: int = 1) -> Batch:
        """The texts of a step that fall to one of `ranks` processes; all of them by default."""
        first, chosen = self._quotas.before(step), self._chosen(step)
        lengths = [self.by_set[number].index.lengths[i] for number, i in chosen]
        targets = sum(self.by_set[number].index.targets[i] for number, i in chosen)
        batches = []
        for number, group in groupby(chosen[split_evenly(lengths, ranks)[rank]], key=itemgetter(0)):
            steps = self.by_set[number]
            epoch = first[number] // len(steps.index.texts)  # at the step's start: a medium has one view in a step
            batches.append(steps.batch_of([steps.index.texts[i] for _, i in group], epoch))
        return replace(Batch.join(batches), whole=(len(chosen), targets), draw=f"{self.seed}/{step}")

    def _chosen(self, step: int) -> list[tuple[int, int]]:
        """The texts of a step: (number of the set, index of the text)."""
        first, last = self._quotas.before(step), self._quotas.before(step + 1)
        return [
            (number, self._text(number, count))
            for number in range(len(self.by_set))
            for count in range(first[number], last[number])
        ]

    def some_texts(self, count: int) -> list[list[list[Segment]]]:
        """What this process is given in `count` steps, as segments, evenly spaced over the first epoch."""
        steps = []
        for step in range(0, self.per_epoch, max(1, self.per_epoch // count)):
            chosen = self._chosen(step)
            lengths = [self.by_set[number].index.lengths[i] for number, i in chosen]
            own = chosen[split_evenly(lengths, self.ranks)[self.rank]]
            steps.append([self.by_set[n].dataset.segments(self.by_set[n].index.texts[i]) for n, i in own])
        return [texts for texts in steps[:count] if texts]

    def _text(self, number: int, count: int) -> int:
        """The index of the text of a set that follows the first `count` texts of it."""
        steps = self.by_set[number]
        epoch, position = divmod(count, len(steps.index.texts))
        if self._epoch_texts[number][0] != epoch:
            self._epoch_texts[number] = epoch, array("I", chain.from_iterable(steps.order(epoch)))
        return self._epoch_texts[number][1][position]
