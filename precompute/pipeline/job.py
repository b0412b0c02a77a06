"""Media -> features -> a finished set: what is to be done, and its three stages (reader, encode, writer)."""

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch

from periscope.bars import progress_bar
from periscope.errors import FeatureSetError, PrecomputeError
from periscope.precompute.decoding.pool import DecodingPool
from periscope.precompute.encoders.base import Encoder
from periscope.precompute.media.picture import mended
from periscope.precompute.pipeline import augment as augmentation
from periscope.precompute.pipeline.clock import Clock
from periscope.precompute.pipeline.encode import BatchEncoder, forward
from periscope.precompute.pipeline.filters import Filters
from periscope.precompute.pipeline.ray_encode import encode_on_ray
from periscope.precompute.pipeline.reader import Reader
from periscope.precompute.pipeline.resume import keys_of, media_to_encode, refuse_lost_media
from periscope.precompute.pipeline.task import EncodingTask
from periscope.precompute.pipeline.writer import finish, write_batch
from periscope.precompute.plan import DiskPlan, alternatives, bytes_each, free_bytes
from periscope.precompute.sources import Collection, Medium
from periscope.shards import manifest as manifests
from periscope.shards.layout import settle_storage
from periscope.shards.timing import Timing, add_timing
from periscope.shards.write import SetWriter, samples_per_shard

BATCH_BYTES = 300_000_000  # of encoder inputs: 64 frames take far more than an image
TRIAL = 8  # media that are encoded once beforehand to estimate the time
CPU_SPEED = 3e10  # multiplications a second: two cores, measured with Whisper base
BATCH_SECONDS = 2.0  # of a batch on a CPU, which gains little from larger ones: the bar moves after two
SHARD_LEAST = 32
SHARD_SECONDS = 300.0  # of a shard on a CPU: what a stopped run loses at most
Item = TypeVar("Item")


@dataclass(frozen=True)
class Job:
    """What to encode, with what, where to, and how.

    collection: media and their texts · encoder, kinds: which features · out: folder of the set · batch: media per
    forward pass · workers: decoding processes · store, pool: as in `settle_storage` · views: of each image, all but the
    first augmented · filters: what is left out · ray: address of a Ray cluster, "auto", or "" for this process alone.
    """

    collection: Collection
    encoder: Encoder
    kinds: Sequence[str]
    out: Path
    batch: int = 32
    workers: int = 4
    store: Sequence[str] = ()
    pool: str = "1x1"
    views: int = 1
    filters: Filters = field(default_factory=Filters)
    ray: str = ""

    def check(self) -> None:
        """Raise PrecomputeError for choices that exclude each other."""
        if self.views > 1 and self.encoder.modality != "image":
            name, modality = self.encoder.name, self.encoder.modality
            raise PrecomputeError(f"--views augments pictures, and {name} takes {modality} media")
        similarity = self.filters.similarity
        if similarity and similarity.judge is None and "pooled" not in self.kinds:
            raise PrecomputeError(
                "--similarity compares words with pooled features: add pooled to --kinds, or name an encoder for it "
                "with --similarity-by"
            )

    @cached_property
    def raw_features(self) -> dict[str, dict]:
        """kind -> manifest entry, as the encoder gives them."""
        return self.encoder.features(self.kinds)

    @cached_property
    def task(self) -> EncodingTask:
        """What is computed for each sample."""
        features = settle_storage(self.raw_features, self.store, self.pool)
        more = {"views": self.views, "augmentation": augmentation.NAME} if self.views > 1 else {}
        features = {kind: entry | more for kind, entry in features.items()}
        return EncodingTask(self.encoder, tuple(self.kinds), features, self.views, self.filters)

    @cached_property
    def batch_size(self) -> int:
        """Samples per forward pass, all views counted, bounded by the size of the encoder's inputs and, on a CPU, by
        its operations. Not by a measured time: features would depend in their last digit on how busy a machine is.
        """
        example = self.encoder.preprocess(self.encoder.example())
        return max(1, min(self.batch, BATCH_BYTES // example.nbytes, self.most_in(BATCH_SECONDS)))

    @property
    def per_shard(self) -> int:
        """Media per shard."""
        most = max(SHARD_LEAST, self.most_in(SHARD_SECONDS) // self.views)
        return min(samples_per_shard(sum(bytes_each(self.task.features).values())), most)

    def most_in(self, seconds: float) -> int:
        """How many inputs are encoded in about so many seconds on a CPU; elsewhere a very large number."""
        cpu = torch.device(self.encoder.device).type == "cpu" and not self.ray
        each = self.encoder.operations() if cpu else 0
        return int(seconds * CPU_SPEED / each) if each else 1 << 30


def precompute(job: Job) -> bool:
    """Do a job: encode its media into its feature set, or resume or extend the set that is there.

    Prints the plan, a progress bar and what was left out. Returns False when the set was complete and nothing changed.
    Raises PrecomputeError or FeatureSetError when the plan, the folder or the encoder doesn't allow it; damaged media
    are listed in rejected.jsonl and never stop it.
    """
    job.check()
    _go_on_as_before(job)
    task, collection = job.task, job.collection
    media = keys_of(collection.media)
    print(_summary(collection))
    with (
        SetWriter(job.out, job.encoder.modality, job.encoder.describe(), task.features) as writer,
        _threads(job.workers + 1) as threads,
        DecodingPool(job.workers) as pool,
    ):
        refuse_lost_media(writer, media, threads)
        todo = media_to_encode(writer, media, threads, job.filters)
        if todo:
            reader = Reader(task, writer, threads, pool)
            _announce(job, todo, reader)
            mended.clear()  # of the trial
            if job.ray:
                encode_on_ray(todo, task, writer, job.ray, job.batch_size, job.per_shard)
            else:
                encode_media(job, todo, reader)
        for kind, count in mended.items():
            print(f"note: {count} x {kind}")
        return finish(collection, media, writer, task, pool)


def _go_on_as_before(job: Job) -> None:
    """Let the encoder compute as the version did that made the set in `out`, if there is one."""
    with suppress(FeatureSetError):  # of a set that can't be read, which is refused later
        if not (job.out / manifests.NAME).is_file():
            return
        if job.encoder.as_earlier(manifests.load_manifest(job.out)["encoder"]):
            print(f"note: {job.out} was made by an earlier version, and is continued as that version encoded")


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that leave what waits for them undone when the block raises."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def encode_media(job: Job, todo: dict[str, Medium], reader: Reader) -> None:
    """The three stages, one shard after another: the reader decodes ahead, the encoder runs batch by batch, and each
    batch is written while the next one is being encoded.
    """
    task, clock, rows, writer = job.task, Clock(), list(todo.items()), reader.writer
    per_shard, size = job.per_shard, max(1, job.batch_size // task.views)
    print("encoding with", task.encoder.name)
    with (
        progress_bar(desc="encoding", total=len(rows), unit=" media", smoothing=0.1, mininterval=0.5) as bar,
        _threads(job.workers) as coders,
    ):
        encoder = BatchEncoder(task, coders, clock, {sample.sha256: sample.origin for sample in writer.samples()})
        for start in range(0, len(rows), per_shard):
            before, fresh = replace(clock), 0
            with writer.shard() as shard:
                batches = reader.batches(rows[start : start + per_shard], size)
                for batch in one_behind(encoder.encode(batches)):
                    write_batch(batch, task, shard, clock)
                    fresh += sum(encoded.coded is not None for encoded in batch)
                    bar.update(len(batch))
                    bar.set_postfix_str(clock.shares(), refresh=False)
            if fresh:
                _note_timing(writer, clock.since(before), fresh, task.encoder)


def one_behind(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, each given out only after the next one was fetched: whatever the first started in threads has had
    that long to end.
    """
    iterator = iter(items)
    try:
        waiting = next(iterator)
    except StopIteration:
        return
    for item in iterator:
        yield waiting
        waiting = item
    yield waiting


def _note_timing(writer: SetWriter, spent: Clock, fresh: int, encoder: Encoder) -> None:
    seconds = {name: round(value, 3) for name, value in vars(spent).items()}
    add_timing(writer.folder, Timing(fresh, **seconds, device=torch.device(encoder.device).type))


def _summary(collection: Collection) -> str:
    captioned = {origin for words in collection.words for origin in words.media}
    count = len(collection.media) - len(captioned.intersection(collection.media))
    without = f", {count} media without words" if count else ""
    return f"{collection.layout}: {len(collection.media)} media, {len(collection.words)} texts{without}"


def _announce(job: Job, todo: dict[str, Medium], reader: Reader) -> None:
    """Print the plan. Takes media that end their decoder in the trial out of `todo`. Raises PrecomputeError when the
    plan doesn't fit on the disk.
    """
    writer, each = reader.writer, bytes_each(job.task.features)
    done = sum(1 for _ in writer.samples())
    choices = {} if writer.manifest or done else alternatives(job.raw_features, job.views)
    plan = DiskPlan(len(todo), done, each, job.out, free_bytes(job.out), _estimate(job, todo, reader), choices)
    print(plan)
    plan.check()


def _estimate(job: Job, todo: dict[str, Medium], reader: Reader) -> float:
    """Seconds for all of `todo`, from encoding the first few on their own."""
    task, inputs = job.task, list[list[torch.Tensor]]()
    rows = list(todo.items())[: max(1, min(job.batch_size, TRIAL) // task.views)]
    samples = reader.read(rows[:1])  # starts the workers
    began = time.perf_counter()
    samples += reader.read(rows[1:])
    decode = (time.perf_counter() - began) / max(1, len(rows) - 1) / job.workers
    for sample in samples:
        if sample.inputs is not None:
            inputs.append(sample.inputs)
        if sample.killed:
            del todo[sample.key]
    if not inputs:
        return 0.0
    began = time.perf_counter()
    forward(task.encoder, [view for views in inputs for view in views], task.kinds)
    return len(todo) * max(decode, (time.perf_counter() - began) / len(inputs))
