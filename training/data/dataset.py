"""Texts and cached features, made ready for the model: what is kept, what a step holds, what a control swaps."""

import hashlib
import json
import os
import signal
from array import array
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain
from multiprocessing import get_all_start_methods

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from periscope.adapters.composed import with_modality
from periscope.adapters.model import Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.segments import Segment
from periscope.adapters.prompting.template import soft_slots
from periscope.adapters.splice import length_of
from periscope.errors import AdapterError, RunError
from periscope.shards.read import FeatureSet
from periscope.shards.texts import Text, Texts
from periscope.training.data.order import epoch_runs, split_evenly, steps_per_epoch
from periscope.training.data.read_ahead import ReadAhead

MANY = 20_000  # texts that are worth several processes
CONTENTS = ("objects", "events", "movers")  # where a text's `meta` lists what its medium holds


@dataclass
class Batch:
    """Some texts, ready for `AdaptedModel`.

    `rows` `(media, width)` or `(media, tokens, width)` fp16 holds the features of the media named in `keys`, each once
    however many of the texts are about it; of several feature sets it is a list of such. `targets` counts the target
    tokens. Of a step that several processes share, `whole` counts the texts and the target tokens of all of it. `draw`
    names the step's noise.
    """

    texts: list[list[Segment]]
    keys: list[str]
    rows: torch.Tensor | list[torch.Tensor]
    targets: int
    whole: tuple[int, int] | None = None
    draw: str | None = None

    @property
    def features(self) -> dict[str, torch.Tensor]:
        rows = chain.from_iterable(self.rows) if isinstance(self.rows, list) else self.rows
        return dict(zip(self.keys, rows, strict=True))

    def __len__(self) -> int:
        return len(self.texts)

    def count(self, mean: str = "token") -> int:
        """How many texts (for a mean over each "sample") or target tokens the whole step has."""
        texts, targets = self.whole or (len(self), self.targets)
        return texts if mean == "sample" else targets

    def cut(self, size: int) -> Iterator["Batch"]:
        """Cut into micro-batches of at most `size` texts, in order."""
        for i in range(0, len(self), size):
            texts = self.texts[i : i + size]
            yield Batch(texts, self.keys, self.rows, _targets(texts), draw=self.draw)

    def pin_memory(self) -> "Batch":
        """Called by the data loader, so that the copy to the GPU doesn't wait."""
        several = isinstance(self.rows, list)
        return replace(self, rows=[rows.pin_memory() for rows in self.rows] if several else self.rows.pin_memory())

    @classmethod
    def join(cls, batches: Sequence["Batch"]) -> "Batch":
        """One batch of several, of different feature sets."""
        texts, keys = ([one for batch in batches for one in getattr(batch, name)] for name in ("texts", "keys"))
        return cls(texts, keys, [batch.rows for batch in batches], sum(batch.targets for batch in batches))


@dataclass
class TextIndex:
    """The texts that can be used, and of each its length and how much of this is target, in tokens; what it is `about`,
    the same number for the same media and neighbours for media that are stored side by side; how many `media` these
    are; whether it `asks` something. `dropped` counts the other texts by reason.
    """

    texts: Sequence[Text]
    lengths: Sequence[int]
    targets: Sequence[int]
    about: Sequence[int]
    media: Sequence[int]
    asks: Sequence[bool]
    dropped: Counter = field(default_factory=Counter)

    @property
    def shares(self) -> bool:
        """Whether some of the texts are about the same media."""
        return len(set(self.about)) < len(self.about)


def feature_shape(features: FeatureSet, kind: str) -> FeatureShape:
    """The shape a projector is built for. Raises RunError when the set doesn't hold `kind`."""
    held = features.manifest["features"]
    if kind not in held:
        raise RunError(
            f"{features.path} holds {', '.join(held)}, not {kind}; encode again with --kinds {kind}, "
            f"or choose an adapter that reads {' or '.join(held)}"
        )
    shape = held[kind]["shape"]
    tokens, width = (1, shape[0]) if len(shape) == 1 else shape
    grid = held[kind].get("grid")
    return FeatureShape(kind, tokens, width, tuple(grid) if grid else None)


class TextFeatureDataset:
    """A feature set's texts as segments, with their features: the bridge from `shards` to `adapters`.

    Among several sets, `within` stands before the names of its media; where several adapters are trained, `owner` is
    the modality of the one that reads them (see `adapters.composed`).
    """

    def __init__(self, features: FeatureSet, prompt: Prompt, adapter: Adapter, within: str = "", owner: str = ""):
        self.features, self.prompt, self.adapter = features, prompt, adapter
        self.within, self.owner = within, owner
        self.kind = adapter.features.kind
        self.tokens, self.soft_tokens = adapter.tokens, adapter.soft_tokens

    def named(self, key: str) -> str:
        """What a medium's slot is called."""
        return f"{self.owner}:{self.within}{key}" if self.owner else self.within + key

    def segments(self, text: Text, *, answer: bool = True, media: bool = True) -> list[Segment]:
        """One text's segments; with `media=False` what is left when there is nothing to look at, with the same targets:
        where the medium was all that preceded the first of them, the prompt's start token takes its place.
        """
        turns, soft, start = text.turns, bool(self.soft_tokens), False
        names = [self.within + key for key in text.media]
        if not media:
            start = self.prompt.needs_start(turns, names, soft)
            turns = [{**turn, "content": self.prompt.without_marks(turn["content"])} for turn in turns]
            names = []
        segments = self.prompt.segments(turns, names, answer=answer, soft_prompt=soft, start=start)
        return with_modality(self.owner, segments) if self.owner else segments

    def batch(
        self,
        texts: Sequence[Text],
        *,
        answer: bool = True,
        media: bool = True,
        instead: Callable[[str], str] | None = None,
        view: Callable[[str], int] | None = None,
    ) -> Batch:
        """Segments and features of `texts`; `instead` names the medium whose features stand in for another's, `view`
        which of a medium's views is read (without it the plain one).
        """
        segments = [self.segments(text, answer=answer, media=media) for text in texts]
        keys = list(dict.fromkeys(key for text in texts for key in text.media)) if media else []
        shown = [instead(key) for key in keys] if instead else keys
        views = {"views": [view(key) for key in keys]} if view else {}
        rows = self.features.read_many(shown, self.kind, **views)
        return Batch(segments, [self.named(key) for key in keys], rows, _targets(segments))

    def keep(
        self, texts: Sequence[Text], max_length: int, desc: str = "reading texts", words_alone: bool = True
    ) -> TextIndex:
        """Leave out texts that can't be trained on: no answer, or longer than `max_length` tokens (never cut short);
        without `words_alone` also texts without a medium, where nothing that is trained has a part in them.
        """
        kept, positions = TextIndex([], *(array(code) for code in "IIIHB")), array("I")
        several: dict[str, int] = {}  # media that texts are about together, and texts about none
        found = _measured_in_order(TextLengths(self, texts, max_length, words_alone))
        bar = tqdm(found, desc, len(texts), leave=False, unit=" texts", disable=len(texts) < MANY)
        for place, one in enumerate(bar):
            if isinstance(one, str):
                kept.dropped[one] += 1
                continue
            length, targets, media, asks, about = one
            number = len(self.features) + several.setdefault(about, len(several)) if isinstance(about, str) else about
            columns = (kept.lengths, kept.targets, kept.about, kept.media, kept.asks, positions)
            for column, value in zip(columns, (length, targets, number, media, asks, place), strict=True):
                column.append(value)
        kept.texts = texts.pick(positions) if isinstance(texts, Texts) else [texts[i] for i in positions]
        return kept


class TextLengths(Dataset):
    """What `TextFeatureDataset.keep` asks of each text: its length, its targets, how many media it is about, whether it
    asks something, and what it is about (one medium's row; else the names of several, or its own); or why it can't be
    used.
    """

    def __init__(self, encoded: TextFeatureDataset, texts: Sequence[Text], max_length: int, words_alone: bool):
        self.encoded, self.texts, self.max_length, self.words_alone = encoded, texts, max_length, words_alone
        soft = soft_slots(encoded.soft_tokens, encoded.prompt.template)
        self.soft = {f"{encoded.owner}:{name}" if encoded.owner else name: count for name, count in soft.items()}

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, place: int) -> tuple[int, int, int, bool, int | str] | str:
        text = self.texts[place]
        if not text.turns or text.turns[-1]["role"] != "assistant" or not text.turns[-1]["content"].strip():
            return "no words to learn"
        if not (self.words_alone or text.media):
            return "no medium, and only the projector is trained"
        try:
            segments = self.encoded.segments(text)
        except AdapterError as error:
            return str(error)
        slots = {self.encoded.named(key): self.encoded.tokens for key in text.media}
        length = length_of(segments, self.soft | slots)
        if length > self.max_length:
            return f"longer than {self.max_length} tokens"
        alone = len(text.media) == 1
        about = self.encoded.features.row(text.media[0]) if alone else " ".join(text.media) or text.id
        return length, _targets([segments]), len(text.media), question_of(text) is not None, about


class TrainingSteps(Dataset):
    """The whole training as one sequence of steps: item i is the batch of step i, whatever was asked before it; of
    `ranks` processes that share each step, what falls to `rank`.

    With `run`, so many media that are stored side by side come before others do, and are read ahead in the order of the
    disk.
    """

    def __init__(
        self,
        encoded: TextFeatureDataset,
        kept: TextIndex,
        batch: int,
        seed: int,
        texts_per_medium: int = 0,
        rank: int = 0,
        ranks: int = 1,
        run: int = 0,
    ):
        self.encoded, self.kept = encoded, kept
        self.batch, self.seed, self.texts_per_medium, self.run = batch, seed, texts_per_medium, run
        self.rank, self.ranks = rank, ranks
        self._epoch, self._order, self._begins, self._spans = -1, [], [], []
        self._ahead = ReadAhead(encoded.features.read_through) if run else None

    @property
    def parts(self) -> list["TrainingSteps"]:
        """The steps of each feature set."""
        return [self]

    def counts(self, steps: int) -> list[int]:
        """How many texts of each set the first `steps` steps have."""
        whole, rest = divmod(steps, self.per_epoch)
        return [whole * len(self.kept.texts) + sum(map(len, self.order(whole)[:rest] if rest else []))]

    @property
    def per_epoch(self) -> int:
        return steps_per_epoch(len(self.kept.texts), self.batch)

    def first_rows(self) -> torch.Tensor:
        """The features of the first step that has a medium; `(0, ...)` where no text is about one."""
        found = (self.share(step).rows for step in range(self.per_epoch))
        return next((rows for rows in found if len(rows)), self.share(0).rows)

    def __getitem__(self, step: int) -> Batch:
        self.read_ahead(*divmod(step, self.per_epoch))
        return self.share(step, self.rank, self.ranks)

    def read_ahead(self, epoch: int, step: int) -> None:
        """Have the run that a step of an epoch is in, and the next, read in the order of the disk."""
        if not self._ahead:
            return
        self.order(epoch)
        number = bisect(self._begins, step) - 1
        for one in range(number, min(number + 2, len(self._spans))):
            first, last = self._spans[one]
            if first < len(self.encoded.features):
                self._ahead.ask((epoch, one), first, last)

    def share(self, step: int, rank: int = 0, ranks: int = 1) -> Batch:
        """The part of a step that falls to one of `ranks` processes; without these, all of it."""
        epoch, place = divmod(step, self.per_epoch)
        order = self.order(epoch)[place]
        part = split_evenly([self.kept.lengths[i] for i in order], ranks)[rank] if ranks > 1 else slice(None)
        texts = [self.kept.texts[i] for i in order[part]]
        whole = len(order), sum(self.kept.targets[i] for i in order)
        return replace(self.batch_of(texts, epoch), whole=whole, draw=f"{self.seed}/{step}")

    def order(self, epoch: int) -> list[Sequence[int]]:
        """The steps of an epoch, each a list of indices into the texts."""
        if epoch != self._epoch:
            about, lengths = self.kept.about, self.kept.lengths
            runs = epoch_runs(about, lengths, self.batch, self.seed, epoch, self.texts_per_medium, self.run)
            self._order = [step for one in runs for step in one.steps]
            self._begins = list(accumulate((len(one.steps) for one in runs[:-1]), initial=0))
            self._spans = [(one.first, one.last) for one in runs]
            self._epoch = epoch
        return self._order

    def batch_of(self, texts: Sequence[Text], epoch: int) -> Batch:
        """Texts with their features, of each medium the view that an epoch shows."""
        views = self.encoded.features.manifest["features"][self.encoded.kind].get("views", 1)
        view = (lambda key: choose_view(self.seed, epoch, key, views)) if views > 1 else None
        return self.encoded.batch(texts, view=view)


def choose_view(seed: int, epoch: int, key: str, views: int) -> int:
    """Which of a medium's views an epoch shows: a function of the seed, the epoch and the medium alone."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{key}".encode()).digest()
    return int.from_bytes(digest[:8], "little") % views


def load_steps(steps: TrainingSteps, first: int, last: int, workers: int, pin: bool) -> DataLoader:
    """Yield the batches of steps `first` to `last - 1`, made ahead by `workers` processes (0: in this one).

    It has a generator of its own: a loader draws a seed when it starts, and a resumed run starts one more.
    """
    return DataLoader(
        steps,
        batch_size=None,
        generator=torch.Generator(),
        sampler=range(first, last),
        num_workers=workers,
        multiprocessing_context=_context(workers),
        worker_init_fn=_never_stop,
        prefetch_factor=4 if workers else None,
        pin_memory=pin,
    )


def _measured_in_order(measured: TextLengths) -> Iterator:
    """All items; of many, each processor of the machine makes some. Draws nothing at random."""
    workers = min(8, os.cpu_count() or 1) if len(measured) >= MANY else 0
    if workers < 2:
        return map(measured.__getitem__, range(len(measured)))
    how = {"multiprocessing_context": _context(workers), "worker_init_fn": _never_stop, "generator": torch.Generator()}
    return chain.from_iterable(DataLoader(measured, 256, num_workers=workers, collate_fn=list, **how))


def _context(workers: int) -> str | None:
    """How workers start: as copies where that is possible, for what lies on a GPU can't be sent to them."""
    return "fork" if workers and "fork" in get_all_start_methods() else None


def _never_stop(_: int) -> None:
    """A stop is for the process that saves; Ctrl-C and torchrun send it to the loader's as well."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def medium_contents(features: FeatureSet, texts: Sequence[Text]) -> dict[str, str]:
    """For each medium of `texts`, what it shows: the things its texts list in `meta`, else the hash of its bytes."""
    contents: dict[str, str] = {}
    for text in texts:
        for key in text.media:
            listed = [text.meta[name] for name in CONTENTS if text.meta.get(name)]
            contents[key] = json.dumps(listed, sort_keys=True) if listed else features.info(key)["sha256"]
    return contents


def question_of(text: Text) -> str | None:
    """The last user turn before the answer, or None for a caption."""
    asked = [turn["content"] for turn in text.turns[:-1] if turn["role"] == "user"]
    return asked[-1] if asked else None


def _targets(texts: Sequence[Sequence[Segment]]) -> int:
    return sum(len(segment.ids) for text in texts for segment in text if segment.target)
