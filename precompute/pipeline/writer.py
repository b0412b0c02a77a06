"""Stage 3: encoded samples -> shards; and, after the last one, everything that makes the shards a set."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial

from periscope.errors import MediaError
from periscope.precompute.decoding.pool import CRASH, SLOW, DecodingPool
from periscope.precompute.encoders.base import Encoder
from periscope.precompute.media import thumbnail
from periscope.precompute.pipeline.clock import Clock
from periscope.precompute.pipeline.encode import EncodedSample, Tensors, forward
from periscope.precompute.pipeline.filters import DUPLICATE
from periscope.precompute.pipeline.reader import GROUP, decoded_for, source_of
from periscope.precompute.pipeline.rejects import report_rejects
from periscope.precompute.pipeline.similarity import Similarity
from periscope.precompute.pipeline.task import EncodingTask
from periscope.precompute.sources import Collection, Medium, Words
from periscope.precompute.sources.disk_list import DiskList
from periscope.shards.split import resolve_splits
from periscope.shards.write import SetWriter, ShardWriter, make_key
from periscope.text import printable


def write_batch(batch: Iterable[EncodedSample], task: EncodingTask, shard: ShardWriter, clock: Clock) -> None:
    """Write a batch to a shard; note what is left out, and why."""
    with clock.count("write"):
        for encoded in batch:
            sample, origin = encoded.sample, encoded.sample.medium.origin
            try:
                tensors = _tensors(encoded, task)
            except MediaError as error:
                shard.reject(origin, error.reason, error.detail, sample.digest)
                continue
            info = {"modality": task.encoder.modality, "origin": origin, "sha256": sample.digest}
            shard.add(sample.key, tensors, info)


def _tensors(encoded: EncodedSample, task: EncodingTask) -> Tensors:
    """What the shard gets of a sample. Raises MediaError when it is left out."""
    if encoded.sample.error is not None:
        raise encoded.sample.error
    if encoded.coded is None:
        assert encoded.sample.stored is not None
        return encoded.sample.stored
    if task.filters.similarity:
        task.filters.similarity.check(encoded.sample.medium.origin)
    return encoded.coded.result()


def finish(
    collection: Collection, media: Mapping[str, Medium], writer: SetWriter, task: EncodingTask, pool: DecodingPool
) -> bool:
    """Write the texts, the held-out split, thumbnails, rejected media and the manifest, and print what came of it.

    media: key -> medium, all that were asked for · pool: decodes for the thumbnails. Returns False when the set was
    complete and nothing changed.
    """
    hashes = {sample.key: sample.sha256 for sample in writer.samples()}
    lacking = media.keys() - hashes.keys()
    latest = {row["origin"]: row for row in writer.rejected if make_key(row["origin"]) in lacking}
    rejects = [{name: row[name] for name in _listed(row["reason"])} for row in latest.values()]
    rejects += [asdict(problem) for problem in collection.problems]
    same = _kept_duplicates(latest, hashes)
    words: Iterable[Words] = collection.words
    if similarity := task.filters.similarity:
        key_of = {medium.origin: key for key, medium in media.items() if key in hashes} | same
        if similarity.judge:
            _compare_again(similarity, similarity.judge, media, key_of, pool)
        else:
            _compare_stored(similarity, writer, key_of)
        words, unlike = similarity.sort(words, set(key_of))
        rejects += unlike
    lines, dropped = text_lines(words, same, hashes)
    texts, heldout = resolve_splits(hashes, lines)
    rejects.sort(key=lambda row: tuple(row.values()))
    report_rejects(rejects, len(media) + len(collection.problems), dropped)
    changed = writer.finish(
        texts, heldout, lambda wanted: _thumbnails(media, wanted, task.encoder.modality, pool), rejects
    )
    state = "is ready" if changed else "was complete already: nothing to do"
    print(f"{writer.folder} {state} ({len(hashes)} media, {len(heldout)} of them held out, {len(lines)} texts)")
    return changed


def _kept_duplicates(rejected: Mapping[str, dict], hashes: Mapping[str, str]) -> dict[str, str]:
    """Origin of a dropped duplicate -> key of the medium with the same content that is in the set.

    rejected: origin -> its row · hashes: key -> content hash, of the set.
    """
    duplicates = {origin: row["sha256"] for origin, row in rejected.items() if row["reason"] == DUPLICATE}
    kept = {digest: key for key, digest in reversed(list(hashes.items()))} if duplicates else {}
    return {origin: kept[digest] for origin, digest in duplicates.items() if digest in kept}


def _compare_stored(similarity: Similarity, writer: SetWriter, key_of: Mapping[str, str]) -> None:
    """Compare the captions of media that an earlier run encoded, and those of dropped duplicates."""
    origins: dict[str, list[str]] = {}
    for origin, key in key_of.items():
        if not similarity.compared(origin):
            origins.setdefault(key, []).append(origin)
    for sample, pooled in writer.read_stored("pooled", lambda sample: sample.key in origins):
        same = origins[sample.key]
        similarity.compare(same, pooled.expand(len(same), -1))


def _compare_again(
    similarity: Similarity,
    judge: Encoder,
    media: Mapping[str, Medium],
    key_of: Mapping[str, str],
    pool: DecodingPool,
) -> None:
    """The same where another encoder compares, whose features aren't stored: it encodes these media again."""
    waiting = [origin for origin in key_of if not similarity.compared(origin)]
    for start in range(0, len(waiting), GROUP):
        origins = waiting[start : start + GROUP]
        inputs = decoded_for(judge, [media[key_of[origin]] for origin in origins], pool)
        for origin, pixels in zip(origins, inputs, strict=True):
            if not isinstance(pixels, MediaError):
                similarity.compare([origin], forward(judge, [pixels], ["pooled"])["pooled"])


def text_lines(
    words: Iterable[Words], same: Mapping[str, str], hashes: Mapping[str, str]
) -> tuple[DiskList[dict], int]:
    """(lines of texts.jsonl about the media that were encoded, number of texts that lost a medium).

    same: as `_kept_duplicates` gives it · hashes: key -> content hash, of the set.
    """
    lines: DiskList[dict] = DiskList()
    dropped, counts, used = 0, Counter[str](), set()
    for text in words:
        media = [same.get(origin) or make_key(origin) for origin in text.media]
        if any(key not in hashes for key in media):
            dropped += 1
            continue
        stem = media[0] if media else "text"
        name = text.id or f"{stem}-{counts[stem]}"
        while name in used:
            counts[name] += 1
            name = f"{text.id or stem}-{counts[name]}"
        counts[stem] += 1
        used.add(name)
        lines.append({"id": name, "media": media, "turns": list(text.turns), "split": text.split, "meta": text.meta})
    return lines, dropped


def _thumbnails(
    media: Mapping[str, Medium], wanted: Sequence[str], modality: str, pool: DecodingPool
) -> Iterator[tuple[str, bytes]]:
    for first in range(0, len(wanted), GROUP):
        keys = wanted[first : first + GROUP]
        sources = [source_of(media[key], partial(thumbnail, modality=modality)) for key in keys]
        for key, outcome in zip(keys, pool.outcomes(sources), strict=True):
            try:
                yield key, outcome.get()
            except MediaError as error:
                print(f"no thumbnail of {printable(media[key].origin)}: {printable(error)}")


def _listed(reason: str) -> tuple[str, ...]:
    """What rejected.jsonl says of a medium: of one that ended its decoder also its content, to know it again by."""
    names = ("origin", "reason", "detail")
    return (*names, "sha256") if reason.startswith((CRASH, SLOW)) else names
