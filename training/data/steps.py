"""A training as one sequence of steps, and the loader that prepares them ahead."""

import hashlib
from bisect import bisect
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch.utils.data import DataLoader, Dataset

from periscope.adapters.prompting.segments import Segment
from periscope.shards.texts import Text
from periscope.training.data.dataset import Batch, TextFeatureDataset, TextIndex
from periscope.training.data.order import TextOrder, split_evenly, steps_per_epoch
from periscope.training.data.read_ahead import ReadAhead
from periscope.training.data.shift import FeatureShift
from periscope.training.data.workers import ignore_stop_signals, start_method


class TrainingSteps(Dataset[Batch]):
    """Item i is the batch of step i, whichever steps were read before; with several `ranks`, the share of `rank`.

    texts_per_medium: see `order.TextOrder` · span_media: train on this many media stored next to each other before
    moving on, and read them ahead sequentially (0: any order) · shift: see `shift.FeatureShift` (0: off).
    """

    def __init__(
        self,
        dataset: TextFeatureDataset,
        index: TextIndex,
        batch: int,
        seed: int,
        texts_per_medium: int = 0,
        rank: int = 0,
        ranks: int = 1,
        span_media: int = 0,
        shift: float = 0.0,
    ):
        self.shift = FeatureShift(dataset.features, dataset.kind, index, shift) if shift else None
        self.dataset, self.index = dataset, index
        self.batch, self.seed, self.texts_per_medium, self.span_media = batch, seed, texts_per_medium, span_media
        self.rank, self.ranks = rank, ranks
        self._epoch = -1  # the epoch that the next three lists describe
        self._order: list[Sequence[int]] = []
        self._span_starts: list[int] = []  # the first step of each span
        self._span_rows: list[tuple[int, int]] = []  # its first and last row in the feature set
        self._ahead = ReadAhead(dataset.features.read_through) if span_media else None

    @property
    def by_set(self) -> list["TrainingSteps"]:
        """The steps of each feature set."""
        return [self]

    def counts(self, steps: int) -> list[int]:
        """How many texts of each set the first `steps` steps have."""
        epochs, rest = divmod(steps, self.per_epoch)
        return [epochs * len(self.index.texts) + sum(map(len, self.order(epochs)[:rest] if rest else []))]

    @property
    def per_epoch(self) -> int:
        return steps_per_epoch(len(self.index.texts), self.batch)

    def first_rows(self) -> torch.Tensor:
        """Features of the first step with a medium, `(media, width)` or `(media, tokens, width)` fp16; no media where
        no text has one.
        """
        for step in range(self.per_epoch):
            if len(rows := self._rows(step)):
                return rows
        return self._rows(0)

    def _rows(self, step: int) -> torch.Tensor:
        rows = self.share(step).rows
        assert not isinstance(rows, list), "the batches of one feature set hold one tensor"
        return rows if isinstance(rows, torch.Tensor) else rows.decode()

    def __getitem__(self, step: int) -> Batch:
        self.read_ahead(*divmod(step, self.per_epoch))
        return self.share(step, self.rank, self.ranks)

    def read_ahead(self, epoch: int, step: int) -> None:
        """Queue the span that a step of an epoch belongs to, and the next one."""
        if not self._ahead:
            return
        self.order(epoch)
        current = bisect(self._span_starts, step) - 1
        for span in range(current, min(current + 2, len(self._span_rows))):
            first, last = self._span_rows[span]
            if first < len(self.dataset.features):
                self._ahead.ask((epoch, span), first, last)

    def share(self, step: int, rank: int = 0, ranks: int = 1) -> Batch:
        """The texts of a step that fall to one of `ranks` processes; all of them by default."""
        epoch, position = divmod(step, self.per_epoch)
        order = self.order(epoch)[position]
        texts = [self.index.texts[i] for i in self._own(order, rank, ranks)]
        whole = len(order), sum(self.index.targets[i] for i in order)
        return replace(self.batch_of(texts, epoch), whole=whole, draw=f"{self.seed}/{step}")

    def _own(self, order: Sequence[int], rank: int, ranks: int) -> Sequence[int]:
        """Of a step's texts, those of one of `ranks` processes."""
        return order[split_evenly([self.index.lengths[i] for i in order], ranks)[rank]] if ranks > 1 else order

    def some_texts(self, count: int) -> list[list[list[Segment]]]:
        """What this process is given in `count` steps of the first epoch, as segments: half of them those with the most
        tokens if padded, the others evenly spaced.
        """
        lengths, order = self.index.lengths, self.order(0)
        largest = sorted(range(len(order)), key=lambda n: -len(order[n]) * max(lengths[i] for i in order[n]))
        chosen = dict.fromkeys([*largest[: count // 2], *range(0, len(order), max(1, 2 * len(order) // count))])
        own = [self._own(order[step], self.rank, self.ranks) for step in list(chosen)[:count]]
        return [[self.dataset.segments(self.index.texts[i]) for i in texts] for texts in own if len(texts)]

    def order(self, epoch: int) -> list[Sequence[int]]:
        """The steps of an epoch, each a list of indices into the texts."""
        if epoch != self._epoch:
            columns = self.index.about, self.index.lengths, self.index.targets
            order = TextOrder(*columns, self.batch, self.seed, self.texts_per_medium, self.span_media)
            spans = order.spans(epoch)
            self._order = [step for span in spans for step in span.steps]
            self._span_starts = list(accumulate((len(span.steps) for span in spans[:-1]), initial=0))
            self._span_rows = [(span.first, span.last) for span in spans]
            self._epoch = epoch
        return self._order

    def batch_of(self, texts: Sequence[Text], epoch: int) -> Batch:
        """Texts with their features, of each medium the view of this epoch; not decoded yet unless they are shifted."""
        entry = self.dataset.features.manifest["features"][self.dataset.kind]
        views, coded = entry.get("views", 1), entry.get("codec", "fp16") != "fp16"
        view = (lambda key: choose_view(self.seed, epoch, key, views)) if views > 1 else None
        batch = self.dataset.batch(texts, view=view, coded=coded and self.shift is None)
        if self.shift and isinstance(batch.rows, torch.Tensor):
            batch.rows = self.shift(batch.rows, batch.keys, f"{self.seed}/{epoch}")
        return batch


def choose_view(seed: int, epoch: int, key: str, views: int) -> int:
    """Which of a medium's views an epoch shows: a function of the seed, the epoch and the medium alone."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{key}".encode()).digest()
    return int.from_bytes(digest[:8], "little") % views


def load_steps(steps: Dataset[Batch], first: int, last: int, workers: int, pin: bool) -> DataLoader[Batch]:
    """Yield the batches of steps `first` to `last - 1`, prepared ahead by `workers` processes (0: none)."""
    return DataLoader(
        steps,
        batch_size=None,
        generator=torch.Generator(),  # a loader draws a seed as it starts, and a resumed run starts one more
        sampler=range(first, last),
        num_workers=workers,
        multiprocessing_context=start_method(workers),
        worker_init_fn=ignore_stop_signals,
        prefetch_factor=4 if workers else None,
        pin_memory=pin,
    )
