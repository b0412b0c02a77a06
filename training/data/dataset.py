"""From texts and cached features to batches: which texts can be trained on, and what the model is given for each."""

import json
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import torch
from torch.utils.data import DataLoader, Dataset

from periscope.adapters.composed import with_modality
from periscope.adapters.model import Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.segments import REQUEST, Segment
from periscope.adapters.prompting.template import soft_slots
from periscope.adapters.splice import length_of
from periscope.bars import progress_bar
from periscope.errors import AdapterError, RunError
from periscope.shards.features import CodedFeatures
from periscope.shards.layout import missing_kind
from periscope.shards.read import FeatureSet
from periscope.shards.texts import Text, Texts, without_marks
from periscope.training.data.workers import ignore_stop_signals, start_method

PARALLEL_TEXTS = 20_000  # from so many texts on, several processes measure them
CONTENTS = ("objects", "events", "movers")  # keys of a text's `meta` that list what its medium shows


Rows = torch.Tensor | CodedFeatures


@dataclass
class Batch:
    """Texts ready for `AdaptedModel`.

    texts: segments of each text · keys: media, each once however many texts are about it · rows: their features,
    `(media, width)` or `(media, tokens, width)` fp16, or as they are stored; a list of these for several feature sets ·
    targets: number of target tokens · whole: (texts, target tokens) of the whole step, where several processes share it
    · draw: names the step's random noise.
    """

    texts: list[list[Segment]]
    keys: list[str]
    rows: Rows | list[Rows]
    targets: int
    whole: tuple[int, int] | None = None
    draw: str | None = None

    @property
    def features(self) -> dict[str, torch.Tensor]:
        """Medium -> its features, `(width,)` or `(tokens, width)`."""
        decoded = (rows.decode() if isinstance(rows, CodedFeatures) else rows for rows in self._by_set)
        return dict(zip(self.keys, chain.from_iterable(decoded), strict=True))

    def features_on(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Medium -> its features on the device, where they are decoded; of the media that the texts name."""
        named = {segment.slot for text in self.texts for segment in text if segment.slot}
        found: dict[str, torch.Tensor] = {}
        first = 0
        for rows in self._by_set:
            keys = self.keys[first : first + len(rows)]
            chosen = [number for number, key in enumerate(keys) if key in named]
            if len(chosen) < len(keys):
                rows = rows.pick(chosen) if isinstance(rows, CodedFeatures) else rows[torch.tensor(chosen).long()]
            there = rows.decode(device) if isinstance(rows, CodedFeatures) else rows.to(device, non_blocking=True)
            found |= zip((keys[number] for number in chosen), there, strict=True)
            first += len(keys)
        return found

    @property
    def _by_set(self) -> list[Rows]:
        return self.rows if isinstance(self.rows, list) else [self.rows]

    def __len__(self) -> int:
        return len(self.texts)

    def count(self, mean: str = "token") -> int:
        """Target tokens of the whole step, or its texts for a mean over each "sample"."""
        texts, targets = self.whole or (len(self), self.targets)
        return texts if mean == "sample" else targets

    def cut(self, size: int) -> Iterator["Batch"]:
        """Cut into micro-batches of at most `size` texts, in order."""
        for i in range(0, len(self), size):
            texts = self.texts[i : i + size]
            yield Batch(texts, self.keys, self.rows, _target_tokens(texts), draw=self.draw)

    def pin_memory(self) -> "Batch":
        """Page-lock the features, so that the copy to the GPU is asynchronous (called by the data loader)."""
        if isinstance(self.rows, list):
            return replace(self, rows=[rows.pin_memory() for rows in self.rows])
        return replace(self, rows=self.rows.pin_memory())

    @classmethod
    def join(cls, batches: Sequence["Batch"]) -> "Batch":
        """Concatenate batches of different feature sets."""
        rows = [rows for batch in batches for rows in batch._by_set]
        texts = [text for batch in batches for text in batch.texts]
        keys = [key for batch in batches for key in batch.keys]
        return cls(texts, keys, rows, sum(batch.targets for batch in batches))


@dataclass
class TextIndex:
    """The texts that can be trained on, with one number per text in each column; `dropped` counts the others by reason.

    lengths: (texts,) uint32, tokens · targets: (texts,) uint32, target tokens · about: (texts,) uint32, row of the
    text's medium in the feature set; a number beyond the last row for each combination of media, and for each text
    without one · media: (texts,) uint16, number of media · is_question: (texts,) uint8, 1 when a user turn comes before
    the answer, 0 for a caption.
    """

    texts: Sequence[Text]
    lengths: Sequence[int]
    targets: Sequence[int]
    about: Sequence[int]
    media: Sequence[int]
    is_question: Sequence[int]
    dropped: Counter = field(default_factory=Counter)

    @property
    def has_shared_media(self) -> bool:
        """Whether several texts are about the same medium."""
        return len(set(self.about)) < len(self.about)


def feature_shape(features: FeatureSet, kind: str) -> FeatureShape:
    """The shape a projector is built for. Raises RunError when the set doesn't hold `kind`."""
    kinds = features.manifest["features"]
    if kind not in kinds:
        raise RunError(missing_kind(features.path, kinds, kind))
    shape = kinds[kind]["shape"]
    tokens, width = (1, shape[0]) if len(shape) == 1 else shape
    grid = kinds[kind].get("grid")
    return FeatureShape(kind, tokens, width, tuple(grid) if grid else None)


class TextFeatureDataset:
    """A feature set's texts as segments, with their features.

    key_prefix: stands before the names of the set's media, so that several sets can be mixed · modality: the modality
    whose adapter reads the set, where several adapters are trained at once (see `adapters.composed`); "" for one.
    """

    def __init__(
        self, features: FeatureSet, prompt: Prompt, adapter: Adapter, key_prefix: str = "", modality: str = ""
    ):
        self.features, self.prompt, self.adapter = features, prompt, adapter
        self.key_prefix, self.modality = key_prefix, modality
        self.kind = adapter.features.kind
        self.tokens, self.soft_tokens = adapter.tokens, adapter.soft_tokens

    def slot_name(self, key: str) -> str:
        """The name of a medium's slot."""
        return f"{self.modality}:{self.key_prefix}{key}" if self.modality else self.key_prefix + key

    def segments(self, text: Text, *, answer: bool = True, media: bool = True) -> list[Segment]:
        """One text's segments; with `media=False` what is left when there is nothing to look at, with the same targets:
        where the medium was all that preceded the first of them, the prompt's start token takes its place.
        """
        turns: Sequence[dict] = text.turns
        if text.request and self.prompt.template.requests == "keep":
            turns = [{"role": REQUEST, "content": without_marks(text.request)}, *turns]
        soft, start = bool(self.soft_tokens), False
        names = [self.key_prefix + key for key in text.media]
        if not media:
            start = self.prompt.needs_start(turns, names, soft)
            turns = [{**turn, "content": self.prompt.without_marks(turn["content"])} for turn in turns]
            names = []
        segments = self.prompt.segments(turns, names, answer=answer, soft_prompt=soft, start=start)
        return with_modality(self.modality, segments) if self.modality else segments

    def batch(
        self,
        texts: Sequence[Text],
        *,
        answer: bool = True,
        media: bool = True,
        instead: Callable[[str], str] | None = None,
        view: Callable[[str], int] | None = None,
        coded: bool = False,
    ) -> Batch:
        """Segments and features of `texts`.

        instead: medium -> the medium whose features replace its own · view: medium -> which of its views to read (None:
        the first, which isn't augmented) · coded: leave the features as they are stored, to be decoded on a device.
        """
        segments = [self.segments(text, answer=answer, media=media) for text in texts]
        keys = list(dict.fromkeys(key for text in texts for key in text.media)) if media else []
        stored_keys = [instead(key) for key in keys] if instead else keys
        views = {"views": [view(key) for key in keys]} if view else {}
        read: Callable[..., Rows] = self.features.read_coded if coded else self.features.read_many
        rows = read(stored_keys, self.kind, **views)
        return Batch(segments, [self.slot_name(key) for key in keys], rows, _target_tokens(segments))

    def keep(
        self, texts: Sequence[Text], max_length: int, desc: str = "reading texts", words_alone: bool = True
    ) -> TextIndex:
        """Index the texts that can be trained on: those with an answer and at most `max_length` tokens (texts are never
        cut short). `words_alone=False` also drops texts without a medium, from which the projector learns nothing.
        """
        lengths, targets, about, media, is_question = (array(code) for code in "IIIHB")
        positions, dropped = array("I"), Counter[str]()
        numbers: dict[str, int] = {}  # one for each combination of media, and each text without a medium
        measured = _measure(TextLengths(self, texts, max_length, words_alone))
        progress = progress_bar(
            measured, desc, len(texts), leave=False, unit=" texts", disable=len(texts) < PARALLEL_TEXTS
        )
        for position, row in enumerate(progress):
            if isinstance(row, str):
                dropped[row] += 1
                continue
            subject = row[-1]
            if isinstance(subject, str):
                subject = len(self.features) + numbers.setdefault(subject, len(numbers))
            columns = (lengths, targets, media, is_question, about, positions)
            for column, value in zip(columns, (*row[:-1], subject, position), strict=True):
                column.append(value)
        chosen = texts.pick(positions) if isinstance(texts, Texts) else [texts[i] for i in positions]
        return TextIndex(chosen, lengths, targets, about, media, is_question, dropped)


Measurement = tuple[int, int, int, bool, int | str]


class TextLengths(Dataset[Measurement | str]):
    """What `TextFeatureDataset.keep` needs of each text, or the reason why it can't be trained on.

    A measurement is (length, target tokens, number of media, whether it is a question, what it is about: the row of its
    one medium, the names of several, or its own id without any).
    """

    def __init__(self, dataset: TextFeatureDataset, texts: Sequence[Text], max_length: int, words_alone: bool):
        self.dataset, self.texts, self.max_length, self.words_alone = dataset, texts, max_length, words_alone
        slots = soft_slots(dataset.soft_tokens, dataset.prompt.template)
        self.soft_slots = {f"{dataset.modality}:{name}" if dataset.modality else name: n for name, n in slots.items()}

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, position: int) -> Measurement | str:
        text = self.texts[position]
        if not text.turns or text.turns[-1]["role"] != "assistant" or not text.turns[-1]["content"].strip():
            return "no words to learn"
        if not (self.words_alone or text.media):
            return "no medium, and only the projector is trained"
        try:
            segments = self.dataset.segments(text)
        except AdapterError as error:
            return str(error)
        slots = {self.dataset.slot_name(key): self.dataset.tokens for key in text.media}
        length = length_of(segments, self.soft_slots | slots)
        if length > self.max_length:
            return f"longer than {self.max_length} tokens"
        one_medium = len(text.media) == 1
        about = self.dataset.features.row(text.media[0]) if one_medium else " ".join(text.media) or text.id
        return length, _target_tokens([segments]), len(text.media), question_of(text) is not None, about


def _measure(lengths: TextLengths) -> Iterator[Measurement | str]:
    """All items in order; many are measured by several processes. Doesn't touch torch's random state."""
    workers = min(8, os.cpu_count() or 1) if len(lengths) >= PARALLEL_TEXTS else 0
    if workers < 2:
        return map(lengths.__getitem__, range(len(lengths)))
    loader = DataLoader(
        lengths,
        256,
        num_workers=workers,
        collate_fn=list,
        multiprocessing_context=start_method(workers),
        worker_init_fn=ignore_stop_signals,
        generator=torch.Generator(),
    )
    return chain.from_iterable(loader)


def medium_contents(features: FeatureSet, texts: Sequence[Text]) -> dict[str, str]:
    """Medium -> what it shows: the objects that its texts list in `meta`, else the hash of its bytes."""
    contents: dict[str, str] = {}
    for text in texts:
        for key in text.media:
            objects = [text.meta[name] for name in CONTENTS if text.meta.get(name)]
            contents[key] = json.dumps(objects, sort_keys=True) if objects else features.info(key)["sha256"]
    return contents


def not_finite_media(batch: Batch) -> list[str]:
    """The media of a batch whose features aren't all finite."""
    return [key for key, rows in batch.features.items() if not rows.isfinite().all()]


def question_of(text: Text) -> str | None:
    """The last user turn before the answer, or None for a caption."""
    questions = [turn["content"] for turn in text.turns[:-1] if turn["role"] == "user"]
    return questions[-1] if questions else None


def _target_tokens(texts: Sequence[Sequence[Segment]]) -> int:
    return sum(len(segment.ids) for text in texts for segment in text if segment.target)
