"""Media -> features -> a finished set: the loop, its resume, and what it says."""

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from shards import FeatureSetError
from shards.features import encode_fp16
from shards.split import resolve_splits
from shards.write import SetWriter, ShardWriter, make_key, samples_per_shard

from . import MediaError, PrecomputeError
from .encoders import Encoder
from .media import thumbnail
from .plan import Plan, bytes_each, free_bytes
from .sources import Collection, Medium

AHEAD = 3  # batches being decoded while one is encoded
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
}


@dataclass(frozen=True)
class Decoded:
    """A medium after the workers had it: its content hash and either what the encoder's preprocessing made of it (a
    picture: (3, H, W)), or stored tensors, or an error.
    """

    digest: str
    inputs: torch.Tensor | None = None
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


def precompute(
    found: Collection, encoder: Encoder, kinds: Sequence[str], out: Path, batch: int = 32, workers: int = 4
) -> bool:
    """Encode the media of a collection into the feature set `out`; resume or extend one that is there.

    Prints the plan, a progress bar and what was left out. Returns False when the set was complete and nothing
    changed. Raises PrecomputeError or FeatureSetError as the plan, the folder or the encoder demand; bad media are
    never fatal.
    """
    features = encoder.features(kinds)
    keys = _keys(found.media)
    print(_summary(found))
    with SetWriter(out, encoder.modality, encoder.describe(), features) as writer, ThreadPoolExecutor(workers) as pool:
        _check_gone(writer, keys)
        todo = _todo(writer, keys, pool)
        if todo:
            done = len(writer.samples())
            plan = Plan(
                len(todo),
                done,
                bytes_each(features),
                out,
                free_bytes(out),
                _estimate(todo, encoder, kinds, batch, workers),
            )
            print(plan)
            plan.check()
            _encode(
                todo, keys, encoder, kinds, writer, pool, batch, samples_per_shard(sum(bytes_each(features).values()))
            )
        return _finish(found, keys, writer, encoder.modality)


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


def _todo(writer: SetWriter, keys: dict[str, Medium], pool: ThreadPoolExecutor) -> dict[str, Medium]:
    """The media that must be encoded now: all but those in whole shards with the same content, and, when a run is
    resumed, those it has already rejected.
    """
    rejected = {make_key(origin): digest for origin, digest in writer.settled_rejects.items()}
    known = writer.known()
    check = [key for key in keys if key in known or key in rejected]
    bar = tqdm(pool.map(lambda key: _digest(keys[key]), check), "checking", len(check), unit="", leave=False, delay=1)
    hashes = dict(zip(check, bar, strict=True))
    kept = writer.settle(hashes)
    kept |= {key for key, digest in rejected.items() if hashes.get(key) == digest}
    return {key: medium for key, medium in keys.items() if key not in kept}


def _check_gone(writer: SetWriter, keys: dict[str, Medium]) -> None:
    if writer.manifest and (gone := [origin for key, (origin, _) in writer.known().items() if key not in keys]):
        raise PrecomputeError(
            f"{writer.folder} holds {len(gone)} media that aren't asked for now ({min(gone)}): "
            "choose another --out, or the same --data and --limit"
        )


def _estimate(todo: dict[str, Medium], encoder: Encoder, kinds: Sequence[str], batch: int, workers: int) -> float:
    """Seconds for all of `todo`, from encoding a first few on their own."""
    began, inputs = time.perf_counter(), []
    for medium in list(todo.values())[: min(batch, TRIED)]:
        try:
            inputs.append(_inputs(medium.read(), encoder))
        except MediaError:
            continue
    if not inputs:
        return 0.0
    decode = (time.perf_counter() - began) / len(inputs) / workers
    began = time.perf_counter()
    _forward(encoder, inputs, kinds)
    return len(todo) * max(decode, (time.perf_counter() - began) / len(inputs))


def _decode(key: str, medium: Medium, encoder: Encoder, writer: SetWriter) -> Decoded:
    try:
        data = medium.read()
    except MediaError as error:
        return Decoded("", error=error)
    digest = hashlib.sha256(data).hexdigest()
    if (stored := writer.stored(key, digest)) is not None:
        return Decoded(digest, stored=stored)
    try:
        return Decoded(digest, _inputs(data, encoder))
    except MediaError as error:
        return Decoded(digest, error=error)


def _inputs(data: bytes, encoder: Encoder) -> torch.Tensor:
    medium = encoder.decode(data)
    try:
        return encoder.preprocess(medium)
    except MediaError:
        raise
    except Exception as error:  # whatever the encoder's own preprocessing chokes on
        raise MediaError("preprocessing failed", f"{type(error).__name__}: {error}") from error


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
    keys: dict[str, Medium],
    encoder: Encoder,
    kinds: Sequence[str],
    writer: SetWriter,
    pool: ThreadPoolExecutor,
    batch: int,
    per_shard: int,
) -> None:
    clock, rows = Clock(), list(todo.items())
    print("encoding with", encoder.name)
    with tqdm(total=len(rows), unit=" media", smoothing=0.1, mininterval=0.5) as bar:
        for start in range(0, len(rows), per_shard):
            with writer.shard() as shard:
                decode = lambda key, medium: _decode(key, medium, encoder, writer)  # noqa: E731
                for part in _batches(rows[start : start + per_shard], batch, decode, pool):
                    _one_batch(part, encoder, kinds, shard, clock)
                    bar.update(len(part))
                    bar.set_postfix_str(clock.shares(), refresh=False)


def _one_batch(part: list, encoder: Encoder, kinds: Sequence[str], shard: ShardWriter, clock: Clock) -> None:
    began = time.perf_counter()
    decoded = [(key, medium, future.result()) for key, medium, future in part]
    decoded_at = time.perf_counter()
    inputs = [row.inputs for _, _, row in decoded if row.inputs is not None]
    given = _forward(encoder, inputs, kinds) if inputs else {}
    encoded_at = time.perf_counter()
    position = 0
    for key, medium, row in decoded:
        tensors = row.stored
        try:
            if row.error:
                raise row.error
            if tensors is None:
                position += 1
                tensors = {kind: _stored(given[kind][position - 1]) for kind in kinds}
        except MediaError as error:
            shard.reject(medium.origin, error.reason, error.detail, row.digest)
            continue
        shard.add(key, tensors, {"modality": encoder.modality, "origin": medium.origin, "sha256": row.digest})
    clock.decode += decoded_at - began
    clock.encode += encoded_at - decoded_at
    clock.write += time.perf_counter() - encoded_at


def _forward(encoder: Encoder, inputs: list[torch.Tensor], kinds: Sequence[str]) -> dict[str, torch.Tensor]:
    """Encode a batch; where the memory doesn't suffice, its halves."""
    try:
        return encoder.encode(torch.stack(inputs), kinds)
    except torch.OutOfMemoryError as error:
        if len(inputs) == 1:
            raise PrecomputeError(
                f"one medium is too much for the memory of {encoder.device}: try --device cpu"
            ) from error
    middle = len(inputs) // 2
    first, second = (_forward(encoder, half, kinds) for half in (inputs[:middle], inputs[middle:]))
    return {kind: torch.cat([first[kind], second[kind]]) for kind in kinds}


def _stored(features: torch.Tensor) -> torch.Tensor:
    try:
        return encode_fp16(features)
    except FeatureSetError as error:
        reason, _, detail = str(error).partition(": ")
        raise MediaError(reason, detail) from error


def _finish(found: Collection, keys: dict[str, Medium], writer: SetWriter, modality: str) -> bool:
    hashes = {sample.key: sample.info["sha256"] for sample in writer.samples()}
    key_of = {medium.origin: key for key, medium in keys.items()}
    texts, dropped = _texts(found, key_of, hashes)
    texts, heldout = resolve_splits(hashes, texts)
    latest = {row["origin"]: row for row in writer.rejected if key_of.get(row["origin"], "") not in hashes}
    rows = [{name: row[name] for name in ("origin", "reason", "detail")} for row in latest.values()]
    rows = sorted(rows + [vars(problem) for problem in found.problems], key=lambda row: tuple(row.values()))
    _say_rejected(rows, len(keys) + len(found.problems), dropped)
    changed = writer.finish(texts, heldout, lambda wanted: _thumbnails(keys, wanted, modality), rows)
    state = "is ready" if changed else "was complete already: nothing to do"
    print(f"{writer.folder} {state} ({len(hashes)} media, {len(heldout)} of them held out, {len(texts)} texts)")
    return changed


def _texts(found: Collection, key_of: dict[str, str], hashes: dict[str, str]) -> tuple[list[dict], int]:
    """Lines of texts.jsonl for the media that were encoded, and how many texts lost a medium."""
    texts, dropped, counts, used = [], 0, Counter(), set()
    for words in found.words:
        media = [key_of.get(origin, "") for origin in words.media]
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
        if number > MANY * asked:
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
