"""Stage 2: decoded samples -> features, in batches on the encoder's device, then coded for storage in threads."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace

import torch

from periscope.device import out_of_memory
from periscope.errors import FeatureSetError, MediaError, PrecomputeError
from periscope.precompute.encoders.base import Encoder
from periscope.precompute.pipeline.clock import Clock
from periscope.precompute.pipeline.filters import DUPLICATE
from periscope.precompute.pipeline.reader import Sample
from periscope.precompute.pipeline.task import EncodingTask
from periscope.shards.features import encode as encode_storage

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class EncodedSample:
    """A sample, and the tensors of its shard being coded (None when it has no new features)."""

    sample: Sample
    coded: Future[Tensors] | None = None


class BatchEncoder:
    """Encodes batches of samples.

    threads: for coding what is stored; others than the reader's, so that coding never waits behind decoding · contents:
    content hash -> origin of the first medium that has it, for those already in the set.
    """

    def __init__(self, task: EncodingTask, threads: Executor, clock: Clock, contents: dict[str, str]):
        self._task, self._threads, self._clock, self._contents = task, threads, clock, contents

    def encode(self, batches: Iterable[Sequence[Future[list[Sample]]]]) -> Iterator[list[EncodedSample]]:
        """Batches of groups of samples being decoded -> the samples with their features, in order."""
        for batch in batches:
            with self._clock.count("decode"):
                samples = [self._deduplicated(sample) for group in batch for sample in group.result()]
            with self._clock.count("encode"):
                encoded = self._encode(samples)
            yield encoded

    def _deduplicated(self, sample: Sample) -> Sample:
        if sample.error is not None:
            return sample
        first = self._contents.setdefault(sample.digest, sample.medium.origin)
        if not self._task.filters.drop_duplicates or first == sample.medium.origin:
            return sample
        return replace(sample, inputs=None, stored=None, error=MediaError(DUPLICATE, f"the same as {first}"))

    def _encode(self, samples: list[Sample]) -> list[EncodedSample]:
        task = self._task
        fresh = [(sample, sample.inputs) for sample in samples if sample.inputs is not None]
        if not fresh:
            return [EncodedSample(sample) for sample in samples]
        features = forward(task.encoder, [view for _, views in fresh for view in views], task.kinds)
        if similarity := task.filters.similarity:
            judged = [sample.judged for sample, _ in fresh if sample.judged is not None]
            pooled = forward(similarity.judge, judged, ["pooled"]) if similarity.judge else features
            views = 1 if similarity.judge else task.views
            similarity.compare([sample.medium.origin for sample, _ in fresh], pooled["pooled"][::views])
        coded: dict[str, Future[Tensors]] = {}
        for number, (sample, _) in enumerate(fresh):
            coded[sample.key] = self._threads.submit(to_stored, pick(features, number, task.views), task.features)
        return [EncodedSample(sample, coded.get(sample.key)) for sample in samples]


def forward(encoder: Encoder, inputs: list[torch.Tensor], kinds: Sequence[str]) -> Tensors:
    """Encode a batch: kind -> `(len(inputs), *shape)` float32 on the CPU. Halves it while memory is short.

    Raises PrecomputeError when the device can't take a single sample.
    """
    try:
        return encoder.encode(torch.stack(inputs), kinds)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        if len(inputs) == 1:
            raise PrecomputeError(
                f"one medium is too much for the memory of {encoder.device}: try --device cpu"
            ) from error
    middle = len(inputs) // 2
    first, second = (forward(encoder, half, kinds) for half in (inputs[:middle], inputs[middle:]))
    return {kind: torch.cat([first[kind], second[kind]]) for kind in kinds}


def pick(features: Mapping[str, torch.Tensor], number: int, views: int) -> Tensors:
    """One sample's features from a batch in which every sample has `views` rows: `(*shape)`, or `(views, *shape)`."""
    rows: int | slice = slice(number * views, (number + 1) * views) if views > 1 else number
    return {kind: tensor[rows] for kind, tensor in features.items()}


def to_stored(features: Mapping[str, torch.Tensor], entries: Mapping[str, Mapping]) -> Tensors:
    """One sample's features, as `pick` gives them -> the tensors of its shard.

    entries: kind -> manifest entry. Raises MediaError for values that can't be stored.
    """
    try:
        return {
            name: tensor
            for kind in entries
            for name, tensor in encode_storage(kind, features[kind], entries[kind]).items()
        }
    except FeatureSetError as error:
        reason, _, detail = str(error).partition(": ")
        raise MediaError(reason, detail) from error
