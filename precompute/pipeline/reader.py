"""Stage 1: bytes of a medium -> what the encoder takes, a few batches ahead of the encoder. Worker processes decode;
threads of this process, each waiting for one of them, prepare what they decoded.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from periscope.errors import MediaError, UnreadError
from periscope.precompute.decoding.pool import DecodingPool, Outcome
from periscope.precompute.decoding.worker import Decoder, Source
from periscope.precompute.encoders.base import Encoder, preprocessing
from periscope.precompute.media import decode_sound_alone, read_file
from periscope.precompute.media.limits import check_bytes
from periscope.precompute.pipeline import augment as augmentation
from periscope.precompute.pipeline.task import EncodingTask
from periscope.precompute.sources import Medium
from periscope.precompute.sources.zip_archive import ByteSpan
from periscope.shards.write import SetWriter

AHEAD = 3  # batches being decoded while one is encoded
GROUP = 32  # media that a worker is handed at once, at most: handing over takes as long as two milliseconds


@dataclass(frozen=True)
class Sample:
    """A medium after decoding. Exactly one of inputs, stored and error is set.

    digest: sha256 of its bytes, "" when they can't be read · inputs: what the encoder takes, one tensor per view (an
    image: `(3, height, width)` float32) · stored: tensors that an earlier shard already holds · error: why it is left
    out · killed: whether it ended the process that decoded it · judged: what the encoder takes that captions are
    compared by, where that is another one.
    """

    key: str
    medium: Medium
    digest: str
    inputs: list[torch.Tensor] | None = None
    stored: dict[str, torch.Tensor] | None = None
    error: MediaError | None = None
    killed: bool = False
    judged: torch.Tensor | None = None


@dataclass(frozen=True)
class Reader:
    """Reads and decodes media in `threads` and the workers of `pool`, except those whose features `writer` still has
    from an earlier run.
    """

    task: EncodingTask
    writer: SetWriter
    threads: Executor
    pool: DecodingPool

    def batches(self, media: Sequence[tuple[str, Medium]], size: int) -> Iterator[list[Future[list[Sample]]]]:
        """The media, (key, medium) each, as batches of groups of samples being decoded, in order."""
        waiting: list[list[Future[list[Sample]]]] = []
        group = max(1, min(GROUP, size, (AHEAD + 1) * size // (2 * self.pool.workers)))
        for start in range(0, len(media), size):
            rows = media[start : start + size]
            groups = [rows[first : first + group] for first in range(0, len(rows), group)]
            waiting.append([self.threads.submit(self.read, rows) for rows in groups])
            if len(waiting) > AHEAD:
                yield waiting.pop(0)
        yield from waiting

    def read(self, rows: Sequence[tuple[str, Medium]]) -> list[Sample]:
        """As `read_samples`."""
        return read_samples(rows, self.task, self.pool, self.writer)


def read_samples(
    rows: Sequence[tuple[str, Medium]], task: EncodingTask, pool: DecodingPool, writer: SetWriter | None = None
) -> list[Sample]:
    """Read and decode a few media, (key, medium) each, and prepare them for the encoder; a damaged one becomes a sample
    with an error. writer: may have features of them, and notes at once which of them ended their worker, so that no
    later run meets these.
    """
    samples = _read_samples(rows, task, pool, writer)
    if not task.filters.similarity or not (judge := task.filters.similarity.judge):
        return samples
    fresh = [sample for sample in samples if sample.inputs is not None]
    inputs = decoded_for(judge, [sample.medium for sample in fresh], pool)
    judged = {sample.key: found for sample, found in zip(fresh, inputs, strict=True)}
    return [_with_judged(sample, judged[sample.key]) if sample.key in judged else sample for sample in samples]


def _with_judged(sample: Sample, found: torch.Tensor | MediaError) -> Sample:
    if isinstance(found, MediaError):
        return replace(sample, inputs=None, error=found)
    return replace(sample, judged=found)


def _read_samples(
    rows: Sequence[tuple[str, Medium]], task: EncodingTask, pool: DecodingPool, writer: SetWriter | None
) -> list[Sample]:
    decoder = task.encoder.decoder()
    if decoder is None:
        return [_decoded_here(key, medium, task, writer) for key, medium in rows]
    sources = []
    for key, medium in rows:
        alone = task.encoder.modality == "audio" and medium.modality == "video"
        wanted = partial(decode_sound_alone, decoder) if alone else decoder
        sources.append(source_of(medium, wanted, writer.reusable(key) if writer else frozenset()))
    outcomes = pool.outcomes(sources)
    return [_sample(*row, outcome, task, writer) for row, outcome in zip(rows, outcomes, strict=True)]


def _sample(key: str, medium: Medium, outcome: Outcome, task: EncodingTask, writer: SetWriter | None) -> Sample:
    if outcome.error is not None:
        digest = content_hash(medium) if outcome.blamed else outcome.digest
        if outcome.killed and writer:
            writer.remember(medium.origin, outcome.error.reason, outcome.error.detail, digest)
        return Sample(key, medium, digest, error=outcome.error, killed=outcome.killed)
    if outcome.value is None and writer:
        return Sample(key, medium, outcome.digest, stored=writer.stored(key, outcome.digest))
    return _prepared(key, medium, outcome.digest, outcome.value, task)


def _prepared(key: str, medium: Medium, digest: str, decoded: Any, task: EncodingTask) -> Sample:
    try:
        return Sample(key, medium, digest, inputs=encoder_inputs(decoded, key, task))
    except MediaError as error:
        return Sample(key, medium, digest, error=error)


def _decoded_here(key: str, medium: Medium, task: EncodingTask, writer: SetWriter | None) -> Sample:
    """The sample of a medium for an encoder whose own `decode` must run in this process."""
    digest = ""
    try:
        data = read_medium(medium)
        digest = hashlib.sha256(data).hexdigest()
        if writer and (stored := writer.stored(key, digest)) is not None:
            return Sample(key, medium, digest, stored=stored)
        return _prepared(key, medium, digest, task.encoder.decode(data), task)
    except MediaError as error:
        return Sample(key, medium, digest, error=error)


def source_of(medium: Medium, decoder: Decoder, known: frozenset[str] = frozenset()) -> Source:
    """What a worker is sent of a medium: the path of a plain file, else its bytes, or why there are none.

    known: digests of contents that needn't be decoded.
    """
    if medium.part is read_file:
        return Source(decoder, path=os.path.abspath(medium.path), known=known)
    try:
        return Source(decoder, data=read_medium(medium), known=known)
    except MediaError as error:
        return Source(decoder, error=error)


def read_medium(medium: Medium) -> bytes:
    """The bytes of a medium. Raises MediaError when they can't be read, and for more bytes than the limits allow."""
    for span in getattr(medium.part, "args", ()):
        if isinstance(span, ByteSpan):  # of an archive, where a few bytes can unpack to gigabytes
            check_bytes(span.size)
    data = medium.read()
    check_bytes(len(data))
    return data


def content_hash(medium: Medium, known: str = "") -> str:
    """sha256 of the bytes of a medium; "" when it can't be read, `known` when the disk or the network failed."""
    try:
        return hashlib.sha256(read_medium(medium)).hexdigest()
    except UnreadError:
        return known
    except MediaError:
        return ""


def decoded_for(encoder: Encoder, media: Sequence[Medium], pool: DecodingPool) -> Iterator[torch.Tensor | MediaError]:
    """What another encoder takes of these media, in order, or why there is nothing."""
    decoder = encoder.decoder()
    if decoder is None:
        for medium in media:
            try:
                yield encoder.preprocessed(encoder.decode(read_medium(medium)))
            except MediaError as error:
                yield error
        return
    for outcome in pool.outcomes([source_of(medium, decoder) for medium in media]):
        try:
            yield encoder.preprocessed(outcome.get())
        except MediaError as error:
            yield error


def encoder_inputs(medium: Any, key: str, task: EncodingTask) -> list[torch.Tensor]:
    """A decoded medium -> one tensor per view, the plain one first. Raises MediaError."""
    encoder = task.encoder
    task.filters.check_picture(medium)

    def prepare() -> list[torch.Tensor]:
        others = (augmentation.augment(medium, key, view, encoder.image_size) for view in range(1, task.views))
        return [encoder.preprocess(view) for view in (medium, *others)]

    return preprocessing(prepare)
