"""Media -> features -> a finished set: the loop, its resume, and what it says."""

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from periscope.errors import MediaError, PrecomputeError
from periscope.precompute.encoders import Encoder
from periscope.precompute.media import thumbnail
from periscope.precompute.pipeline import augment as augmentation
from periscope.precompute.pipeline.filters import DUPLICATE, REASONS, Filters
from periscope.precompute.pipeline.ray_encode import encode_on_ray
from periscope.precompute.pipeline.similarity import Similarity
from periscope.precompute.pipeline.task import EncodingTask, forward, inputs_of, store
from periscope.precompute.plan import DiskPlan, alternatives, bytes_each, free_bytes
from periscope.precompute.sources import Collection, Medium, Words
from periscope.precompute.sources.disk_list import DiskList
from periscope.shards.features import settle_storage
from periscope.shards.split import resolve_splits
from periscope.shards.timing import Timing, add_timing
from periscope.shards.write import SetWriter, ShardWriter, make_key, samples_per_shard

AHEAD = 3  # batches being decoded while one is encoded
BATCH_BYTES = 300_000_000  # of inputs: 64 frames take much more than a picture
TRIED = 8  # media that are encoded once beforehand to estimate the time
MANY = 0.05
MENDS = {
    "HEIC needs a plug-in": "pip install pillow-heif, and run the same command again",
    "AVIF needs a newer Pillow": "pip install -U pillow, and run the same command again",
    "truncated": "the files were cut while being copied or downloaded: fetch them again",
    "empty file": "the files were cut while being copied or downloaded: fetch them again",
    "not a picture": "these files aren't what their names say: look at one of them",
    "missing file": "the words name media that aren't there: check --data and the paths in it",
    "outside the data folder": "name the folder that holds both the words and the media as --data",
    "can't be opened": "check the permissions of the files",
    "beyond float16": "pass --precision fp32; if that doesn't help, this encoder's features don't fit float16",
    "not finite": "pass --precision fp32: the encoder overflows in half precision",
    "too many pixels": "make the pictures smaller",
    "several files of that name": "leave one of them, or name a smaller folder as --data",
    "words can't be read": "the file is cut or damaged: download it again",
    "damaged archive": "download it again",
    "compressed archive": "unpack it to a plain .tar",
}


@dataclass(frozen=True)
class Decoded:
    """A medium after the workers had it: its content hash and either what the encoder's preprocessing made of each of
    its views (a picture: (3, H, W)), or stored tensors, or an error.
    """

    digest: str
    inputs: list[torch.Tensor] | None = None
    stored: dict[str, torch.Tensor] | None = None
    error: MediaError | None = None


@dataclass
class Clock:
    """Seconds of the main thread by what it waited for."""

    decode: float = 0.0
    encode: float = 0.0
    write: float = 0.0

    def shares(self) -> str:
        """For people: the share of each."""
        total = self.decode + self.encode + self.write or 1.0
        return " ".join(f"{name} {100 * spent / total:.0f}%" for name, spent in vars(self).items())

    def since(self, before: "Clock") -> "Clock":
        """What was spent since it stood as `before`."""
        return Clock(*(now - then for now, then in zip(vars(self).values(), vars(before).values(), strict=True)))


def precompute(
    found: Collection,
    encoder: Encoder,
    kinds: Sequence[str],
    out: Path,
    batch: int = 32,
    workers: int = 4,
    store: Sequence[str] = (),
    pool: str = "1x1",
    views: int = 1,
    filters: Filters | None = None,
    ray: str = "",
) -> bool:
    """Encode the media of a collection into the feature set `out`; resume or extend one that is there.

    store, pool: as in `settle_storage` · views: of each picture, all but the first augmented · ray: the address of a
    Ray cluster to encode on, or "auto". Prints the plan, a progress bar and what was left out. Returns False when the
    set was complete and nothing changed. Raises PrecomputeError or FeatureSetError as the plan, the folder or the
    encoder demand; bad media are never fatal.
    """
    if views > 1 and encoder.modality != "image":
        raise PrecomputeError(f"--views augments pictures, and {encoder.name} takes {encoder.modality} media")
    raw = encoder.features(kinds)
    features = _with_views(settle_storage(raw, store, pool), views)
    task = EncodingTask(encoder, tuple(kinds), features, views, filters or Filters())
    batch = min(batch, max(1, BATCH_BYTES // encoder.preprocess(encoder.example()).nbytes))
    if task.filters.similarity and "pooled" not in kinds:
        raise PrecomputeError("--similarity compares words with pooled features: add pooled to --kinds")
    keys = _keys(found.media)
    print(_summary(found))
    with (
        SetWriter(out, encoder.modality, encoder.describe(), task.features) as writer,
        ThreadPoolExecutor(workers) as threads,
    ):
        _check_gone(writer, keys, threads)
        todo = _todo(writer, keys, threads, task.filters)
        if todo:
            done, each = sum(1 for _ in writer.samples()), bytes_each(task.features)
            choices = {} if writer.manifest or done else alternatives(raw, views)
            seconds = _estimate(todo, task, batch, workers)
            plan = DiskPlan(len(todo), done, each, out, free_bytes(out), seconds, choices)
            print(plan)
            plan.check()
            per_shard = samples_per_shard(sum(each.values()))
            if ray:
                encode_on_ray(todo, task, writer, ray, batch, per_shard)
            else:
                _encode(todo, task, writer, threads, workers, batch, per_shard)
        return _finish(found, keys, writer, task)


def _with_views(features: dict[str, dict], views: int) -> dict[str, dict]:
    more = {"views": views, "augmentation": augmentation.NAME} if views > 1 else {}
    return {kind: entry | more for kind, entry in features.items()}


def _keys(media: dict[str, Medium]) -> dict[str, Medium]:
    keys = {make_key(origin): medium for origin, medium in media.items()}
    if len(keys) != len(media):
        raise PrecomputeError("two media get the same key, which 64 bits of sha256 make all but impossible: rename one")
    return keys


def _summary(found: Collection) -> str:
    worded = {origin for words in found.words for origin in words.media}
    wordless = len(found.media) - len(worded.intersection(found.media))
    without = f", {wordless} media without words" if wordless else ""
    return f"{found.layout}: {len(found.media)} media, {len(found.words)} texts{without}"


def _digest(medium: Medium) -> str:
    """The content hash of a medium now; empty when it can't be read."""
    try:
        return hashlib.sha256(medium.read()).hexdigest()
    except MediaError:
        return ""


def _todo(writer: SetWriter, keys: dict[str, Medium], pool: ThreadPoolExecutor, filters: Filters) -> dict[str, Medium]:
    """The media that must be encoded now: all but those in whole shards with the same content, and, when a run is
    resumed, those it has already rejected.
    """
    rows = [row for row in writer.rejected if filters.settled(row["reason"])]
    rejected = {make_key(row["origin"]): row.get("sha256", "") for row in rows}
    known = writer.known()
    check = [key for key in keys if key in known or key in rejected]
    bar = tqdm(pool.map(lambda key: _digest(keys[key]), check), "checking", len(check), unit="", leave=False, delay=1)
    hashes = dict(zip(check, bar, strict=True))
    kept = writer.settle(hashes)
    kept |= {key for key, digest in rejected.items() if hashes.get(key) == digest}
    return {key: medium for key, medium in keys.items() if key not in kept}


def _check_gone(writer: SetWriter, keys: dict[str, Medium], pool: ThreadPoolExecutor) -> None:
    """Refuse a finished set that holds media which are no longer there, unless they have other names now."""
    known = writer.known()
    gone = {origin: digest for key, (origin, digest) in known.items() if key not in keys}
    if not writer.manifest or not gone:
        return
    unknown = [medium for key, medium in keys.items() if key not in known]
    contents = set(pool.map(_digest, unknown)) if unknown else set()
    if lost := [origin for origin, digest in gone.items() if digest not in contents]:
        raise PrecomputeError(
            f"{writer.folder} holds {len(lost)} media that aren't asked for now ({min(lost)}): "
            "choose another --out, or the same --data and --limit"
        )
    print(f"{len(gone)} media have other names now and are encoded under these ({min(gone)})")


def _estimate(todo: dict[str, Medium], task: EncodingTask, batch: int, workers: int) -> float:
    """Seconds for all of `todo`, from encoding a first few on their own."""
    began, inputs = time.perf_counter(), []
    for key, medium in list(todo.items())[: max(1, min(batch, TRIED) // task.views)]:
        try:
            inputs.append(inputs_of(medium.read(), key, task))
        except MediaError:
            continue
    if not inputs:
        return 0.0
    decode = (time.perf_counter() - began) / len(inputs) / workers
    began = time.perf_counter()
    forward(task.encoder, [view for views in inputs for view in views], task.kinds)
    return len(todo) * max(decode, (time.perf_counter() - began) / len(inputs))


def _decode(key: str, medium: Medium, task: EncodingTask, writer: SetWriter) -> Decoded:
    try:
        data = medium.read()
    except MediaError as error:
        return Decoded("", error=error)
    digest = hashlib.sha256(data).hexdigest()
    if (stored := writer.stored(key, digest)) is not None:
        return Decoded(digest, stored=stored)
    try:
        return Decoded(digest, inputs_of(data, key, task))
    except MediaError as error:
        return Decoded(digest, error=error)


def _batches(rows: list[tuple[str, Medium]], size: int, decode: object, pool: ThreadPoolExecutor) -> Iterator[list]:
    """Batches of (key, medium, future), a few of them decoding ahead."""
    waiting: list[list[tuple[str, Medium, Future]]] = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        waiting.append([(key, medium, pool.submit(decode, key, medium)) for key, medium in part])
        if len(waiting) > AHEAD:
            yield waiting.pop(0)
    yield from waiting


def _encode(
    todo: dict[str, Medium],
    task: EncodingTask,
    writer: SetWriter,
    threads: ThreadPoolExecutor,
    workers: int,
    batch: int,
    per_shard: int,
) -> None:
    clock, rows = Clock(), list(todo.items())
    contents = {sample.sha256: sample.origin for sample in writer.samples()}
    print("encoding with", task.encoder.name)
    with (
        tqdm(total=len(rows), unit=" media", smoothing=0.1, mininterval=0.5) as bar,
        ThreadPoolExecutor(workers) as coders,  # their work isn't to wait behind the decoding
    ):
        for start in range(0, len(rows), per_shard):
            began, fresh = replace(clock), 0
            with writer.shard() as shard:
                decode = partial(_decode, task=task, writer=writer)
                before = None
                for part in _batches(rows[start : start + per_shard], max(1, batch // task.views), decode, threads):
                    encoded = _encode_batch(part, task, contents, coders, clock)
                    _write_batch(before or [], task, shard, clock)  # while the encoder has been at work
                    before = encoded
                    fresh += sum(row.inputs is not None for _, _, row, _ in encoded)
                    bar.update(len(part))
                    bar.set_postfix_str(clock.shares(), refresh=False)
                _write_batch(before or [], task, shard, clock)
            if fresh:
                spent = {name: round(seconds, 3) for name, seconds in vars(clock.since(began)).items()}
                add_timing(writer.folder, Timing(fresh, **spent, device=torch.device(task.encoder.device).type))


def _encode_batch(
    part: list, task: EncodingTask, contents: dict[str, str], coders: ThreadPoolExecutor, clock: Clock
) -> list[tuple[str, Medium, Decoded, Future | None]]:
    """Run the encoder over a batch of (key, medium, future Decoded); what is to be stored is still being coded.

    contents: content hash -> origin of the first medium that has it; grows.
    """
    began = time.perf_counter()
    rows = []
    for key, medium, future in part:
        row = future.result()
        first = contents.setdefault(row.digest, medium.origin) if row.error is None else medium.origin
        if task.filters.drop_duplicates and first != medium.origin:
            row = Decoded(row.digest, error=MediaError(DUPLICATE, f"the same as {first}"))
        rows.append((key, medium, row))
    decoded_at = time.perf_counter()
    fresh = [(medium.origin, row.inputs) for _, medium, row in rows if row.inputs is not None]
    given = forward(task.encoder, [view for _, views in fresh for view in views], task.kinds) if fresh else {}
    if task.filters.similarity and fresh:
        task.filters.similarity.compare([origin for origin, _ in fresh], given["pooled"][:: task.views])
    encoded, position = [], 0
    for key, medium, row in rows:
        future = None
        if row.inputs is not None:
            views = slice(position, position + task.views) if task.views > 1 else position
            position += task.views
            future = coders.submit(store, {kind: given[kind][views] for kind in task.kinds}, task.features)
        encoded.append((key, medium, row, future))
    clock.decode += decoded_at - began
    clock.encode += time.perf_counter() - decoded_at
    return encoded


def _write_batch(encoded: list, task: EncodingTask, shard: ShardWriter, clock: Clock) -> None:
    began = time.perf_counter()
    for key, medium, row, future in encoded:
        try:
            if row.error:
                raise row.error
            if future is not None and task.filters.similarity:
                task.filters.similarity.check(medium.origin)
            tensors = future.result() if future is not None else row.stored
        except MediaError as error:
            shard.reject(medium.origin, error.reason, error.detail, row.digest)
            continue
        shard.add(key, tensors, {"modality": task.encoder.modality, "origin": medium.origin, "sha256": row.digest})
    clock.write += time.perf_counter() - began


def _finish(found: Collection, keys: dict[str, Medium], writer: SetWriter, task: EncodingTask) -> bool:
    hashes = {sample.key: sample.sha256 for sample in writer.samples()}
    latest = {row["origin"]: row for row in writer.rejected if make_key(row["origin"]) not in hashes}
    rows = [{name: row[name] for name in ("origin", "reason", "detail")} for row in latest.values()]
    rows += [vars(problem) for problem in found.problems]
    doubles = {origin: row["sha256"] for origin, row in latest.items() if row["reason"] == DUPLICATE}
    kept = {digest: key for key, digest in reversed(hashes.items())} if doubles else {}
    shown = {origin: kept[digest] for origin, digest in doubles.items() if digest in kept}
    words = found.words
    if task.filters.similarity:
        key_of = {medium.origin: key for key, medium in keys.items() if key in hashes} | shown
        _compare_stored(task.filters.similarity, writer, key_of)
        words, unlike = task.filters.similarity.sort(words, set(key_of))
        rows += unlike
    texts, dropped = _texts(words, shown, hashes)
    named, heldout = resolve_splits(hashes, texts)
    rows.sort(key=lambda row: tuple(row.values()))
    _say_rejected(rows, len(keys) + len(found.problems), dropped)
    changed = writer.finish(named, heldout, lambda wanted: _thumbnails(keys, wanted, task.encoder.modality), rows)
    state = "is ready" if changed else "was complete already: nothing to do"
    print(f"{writer.folder} {state} ({len(hashes)} media, {len(heldout)} of them held out, {len(texts)} texts)")
    return changed


def _compare_stored(similarity: Similarity, writer: SetWriter, key_of: dict[str, str]) -> None:
    """Compare the words of media that an earlier run encoded, and those of dropped duplicates."""
    origins: dict[str, list[str]] = {}
    for origin, key in key_of.items():
        if not similarity.compared(origin):
            origins.setdefault(key, []).append(origin)
    for sample, pooled in writer.read_stored("pooled", lambda sample: sample.key in origins):
        same = origins[sample.key]
        similarity.compare(same, pooled.expand(len(same), -1))


def _texts(all_words: Iterable[Words], shown: dict[str, str], hashes: dict[str, str]) -> tuple[DiskList[dict], int]:
    """Lines of texts.jsonl for the media that were encoded, and how many texts lost a medium. `shown`: origin of a
    dropped duplicate -> key of the medium that is kept.
    """
    texts, dropped, counts, used = DiskList(), 0, Counter(), set()
    for words in all_words:
        media = [shown.get(origin) or make_key(origin) for origin in words.media]
        if any(key not in hashes for key in media):
            dropped += 1
            continue
        stem = media[0] if media else "text"
        name = words.id or f"{stem}-{counts[stem]}"
        while name in used:
            counts[name] += 1
            name = f"{words.id or stem}-{counts[name]}"
        counts[stem] += 1
        used.add(name)
        texts.append({"id": name, "media": media, "turns": list(words.turns), "split": words.split, "meta": words.meta})
    return texts, dropped


def _say_rejected(rows: list[dict], asked: int, dropped: int) -> None:
    counts = Counter(row["reason"] for row in rows)
    for reason, number in counts.most_common():
        if number > MANY * asked and not reason.startswith(REASONS):
            mend = MENDS.get(reason, "look at rejected.jsonl")
            print(f"warning: {number} of {asked} were left out for one reason, {reason!r}: {mend}")
    if rows:
        reasons = ", ".join(f"{number} {reason}" for reason, number in counts.most_common())
        print(f"{len(rows)} left out ({reasons}); rejected.jsonl lists them")
    if dropped:
        print(f"{dropped} texts were left out with their media")


def _thumbnails(keys: dict[str, Medium], wanted: Iterable[str], modality: str) -> Iterator[tuple[str, bytes]]:
    for key in wanted:
        try:
            yield key, thumbnail(keys[key].read(), modality)
        except MediaError as error:
            print(f"no thumbnail of {keys[key].origin}: {error}")
