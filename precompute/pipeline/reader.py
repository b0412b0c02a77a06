"""Stage 1: bytes of a medium -> what the encoder takes, in threads, a few batches ahead of the encoder."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import torch

from periscope.errors import MediaError
from periscope.precompute.media import has_pictures
from periscope.precompute.media.limits import check_bytes
from periscope.precompute.pipeline import augment as augmentation
from periscope.precompute.pipeline.task import EncodingTask
from periscope.precompute.sources import Medium
from periscope.precompute.sources.zip_archive import ByteSpan
from periscope.shards.write import SetWriter

AHEAD = 3  # batches being decoded while one is encoded


@dataclass(frozen=True)
class Sample:
    """A medium after decoding. Exactly one of inputs, stored and error is set.

    digest: sha256 of its bytes, "" when they can't be read · inputs: what the encoder takes, one tensor per view (an
    image: `(3, height, width)` float32) · stored: tensors that an earlier shard already holds · error: why it is left
    out · judged: what the encoder takes that captions are compared by, where that is another one.
    """

    key: str
    medium: Medium
    digest: str
    inputs: list[torch.Tensor] | None = None
    stored: dict[str, torch.Tensor] | None = None
    error: MediaError | None = None
    judged: torch.Tensor | None = None


@dataclass(frozen=True)
class Reader:
    """Reads and decodes media in `threads`, except those whose features `writer` still has from an earlier run."""

    task: EncodingTask
    writer: SetWriter
    threads: Executor

    def batches(self, media: Sequence[tuple[str, Medium]], size: int) -> Iterator[list[Future[Sample]]]:
        """The media, (key, medium) each, as batches of samples being decoded, in order."""
        waiting: list[list[Future[Sample]]] = []
        for start in range(0, len(media), size):
            rows = media[start : start + size]
            waiting.append([self.threads.submit(self.read, key, medium) for key, medium in rows])
            if len(waiting) > AHEAD:
                yield waiting.pop(0)
        yield from waiting

    def read(self, key: str, medium: Medium) -> Sample:
        """Read and decode one medium; a damaged one becomes a sample with an error."""
        try:
            data = read_medium(medium, self.task)
        except MediaError as error:
            return Sample(key, medium, "", error=error)
        digest = hashlib.sha256(data).hexdigest()
        if (stored := self.writer.stored(key, digest)) is not None:
            return Sample(key, medium, digest, stored=stored)
        try:
            inputs = encoder_inputs(data, key, self.task)
            return Sample(key, medium, digest, inputs=inputs, judged=judge_input(data, self.task))
        except MediaError as error:
            return Sample(key, medium, digest, error=error)


def read_medium(medium: Medium, task: EncodingTask) -> bytes:
    """The bytes of a medium. Raises MediaError when they can't be read, and for a clip where a sound is wanted, and
    for more bytes than the limits allow.
    """
    for span in getattr(medium.part, "args", ()):
        if isinstance(span, ByteSpan):  # of an archive, where a few bytes can unpack to gigabytes
            check_bytes(span.size)
    data = medium.read()
    check_bytes(len(data))
    if task.encoder.modality == "audio" and medium.modality == "video" and has_pictures(data):
        raise MediaError("a clip, not a sound", "it has pictures; only its sound would be encoded")
    return data


def judge_input(data: bytes, task: EncodingTask) -> torch.Tensor | None:
    """The bytes of a medium -> what the encoder takes that compares captions; None where that is the task's own."""
    judge = task.filters.similarity.judge if task.filters.similarity else None
    return None if judge is None else judge.preprocess(judge.decode(data))


def encoder_inputs(data: bytes, key: str, task: EncodingTask) -> list[torch.Tensor]:
    """The bytes of a medium -> one tensor per view, the plain one first. Raises MediaError."""
    encoder = task.encoder
    medium = encoder.decode(data)
    task.filters.check_size(medium)
    try:
        others = (augmentation.augment(medium, key, view, encoder.image_size) for view in range(1, task.views))
        return [encoder.preprocess(view) for view in (medium, *others)]
    except MediaError:
        raise
    except Exception as error:  # whatever the encoder's own preprocessing raises
        raise MediaError("preprocessing failed", f"{type(error).__name__}: {error}") from error
