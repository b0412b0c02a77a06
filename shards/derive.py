"""New feature sets from finished ones, without their media: recoding and merging."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch

from periscope.checked import check_type, json_objects
from periscope.errors import FeatureSetError
from periscope.shards import manifest as manifests
from periscope.shards.features import encode
from periscope.shards.layout import describe, parse_pool, settle_storage, stored_bytes
from periscope.shards.read import FeatureSet
from periscope.shards.split import resolve_splits
from periscope.shards.timing import add_timing, load_timing
from periscope.shards.verify import MEND, changed_files
from periscope.shards.write import STORAGE, SetWriter, samples_per_shard, tidy

Tensors = dict[str, torch.Tensor]
Source = tuple[str, dict, Callable[[], Tensors]]  # a medium's key, its info, and what gives its stored tensors


def recode(folder: Path, out: Path, store: Sequence[str] = (), pool: str = "1x1") -> FeatureSet:
    """Write the set `folder` again as `out`, with another codec or pool (see `settle_storage`). A killed run continues
    when called again.

    Raises FeatureSetError when `out` is taken, when it isn't possible, or when nothing would change.
    """
    source = _opened(folder)
    old = source.manifest["features"]
    new = settle_storage(old, store, pool)
    if new == old:
        raise FeatureSetError(f"{folder} is stored so already ({'; '.join(map(describe, old.values()))})")
    factors = list(parse_pool(pool))

    def load(key: str) -> Tensors:
        tensors = source.stored(key)
        for kind, entry in new.items():
            if entry != old[kind]:
                tensors = {name: tensor for name, tensor in tensors.items() if name.partition(".")[0] != kind}
                views = range(entry.get("views", 1))
                features = source.read_many([key] * len(views), kind, views)
                further = {name: value for name, value in entry.items() if name != "pool"}
                if kind == "patches" and factors != [1, 1]:
                    further["pool"] = factors  # on top of what it has
                tensors |= encode(kind, features if "views" in entry else features[0], further)
        return tensors

    media = ((key, source.info(key), lambda key=key: load(key)) for key in source.keys)
    rejected = _rejected(source)
    with _writer(out, source, new) as writer:
        _copy(writer, media, len(source))
        writer.finish([text.row() for text in source.texts()], set(source.heldout), _thumbnails([source]), rejected)
    _note_timing(out, [source])
    return FeatureSet(out)


def merge(out: Path, folders: Sequence[Path]) -> FeatureSet:
    """Merge sets of one encoder and one storage format into `out`. A medium in several sets is kept once. A killed run
    continues when called again.

    The held-out media are chosen anew, but a set whose source named its splits keeps them. Texts with the same id are
    kept once if they are equal, else renamed. Raises FeatureSetError when `out` is taken, and when the sets don't
    fit together.
    """
    sets = [_opened(folder) for folder in folders]
    if len(sets) < 2:
        raise FeatureSetError("merge takes the new set's folder and at least two sets")
    first = sets[0]
    for other in sets[1:]:
        _check_alike(first, other)
    owners: dict[str, FeatureSet] = {}
    for part in sets:
        for key in part.keys:
            if part.info(key)["sha256"] != owners.setdefault(key, part).info(key)["sha256"]:
                raise FeatureSetError(
                    f"{owners[key].path} and {part.path} both hold {part.info(key)['origin']!r}, with different "
                    "content: encode one of them again from a folder in which it has another path"
                )
    media = ((key, part.info(key), lambda key=key, part=part: part.stored(key)) for key, part in owners.items())
    hashes = {key: part.info(key)["sha256"] for key, part in owners.items()}
    texts, heldout = resolve_splits(hashes, _join_texts(sets))
    origins = {part.info(key)["origin"] for key, part in owners.items()}
    rejected = {row["origin"]: row for part in sets for row in _rejected(part) if row["origin"] not in origins}
    with _writer(out, first, first.manifest["features"]) as writer:
        _copy(writer, media, len(owners))
        writer.finish(texts, heldout, _thumbnails(sets), list(rejected.values()))
    _note_timing(out, sets)
    return FeatureSet(out)


def _opened(folder: Path) -> FeatureSet:
    """A set whose texts, held-out media and thumbnails are as they were written. Raises FeatureSetError."""
    features = FeatureSet(folder)
    if wrong := changed_files(features.path, features.manifest):
        raise FeatureSetError(f"{folder}: {'; '.join(wrong)}. {MEND}")
    return features


def _writer(out: Path, source: FeatureSet, features: dict[str, dict]) -> SetWriter:
    if (Path(out) / manifests.NAME).is_file():
        tidy(Path(out))
        manifests.refuse_taken(out)
    return SetWriter(out, source.manifest["modality"], source.manifest["encoder"], features)


def _note_timing(out: Path, sets: Sequence[FeatureSet]) -> None:
    """The time to encode the sets is the time to encode this one."""
    for timing in filter(None, (load_timing(one.path) for one in sets)):
        add_timing(out, timing)


def _copy(writer: SetWriter, media: Iterable[Source], count: int) -> None:
    """Write what `writer` doesn't hold yet from a stopped run."""
    kept = writer.settle({key: digest for key, (_, digest) in writer.known().items()})
    each = sum(stored_bytes(entry) for entry in writer.features.values())
    left = (row for row in media if row[0] not in kept)
    for _ in range(0, count - len(kept), samples_per_shard(each)):
        with writer.shard() as shard:
            for key, info, load in itertools.islice(left, samples_per_shard(each)):
                shard.add(key, load(), info)


def _check_alike(one: FeatureSet, other: FeatureSet) -> None:
    name = lambda part: f"{part.manifest['encoder'].get('name', '?')} for {part.manifest['modality']} media"  # noqa: E731
    facts = lambda part: (part.manifest["encoder"]["fingerprint"], part.manifest["modality"])  # noqa: E731
    if facts(one) != facts(other):
        raise FeatureSetError(
            f"{one.path} and {other.path} can't be merged: their encoders differ in weights, layer or preprocessing "
            f"({name(one)}, {name(other)})"
        )
    mine, theirs = one.manifest["features"], other.manifest["features"]
    if set(mine) != set(theirs):
        raise FeatureSetError(
            f"{one.path} and {other.path} can't be merged: the one holds {', '.join(sorted(mine))}, the other "
            f"{', '.join(sorted(theirs))}"
        )
    for kind, entry in mine.items():
        if any(entry.get(name) != theirs[kind].get(name) for name in STORAGE):
            raise FeatureSetError(
                f"{one.path} and {other.path} can't be merged: {kind} are {describe(entry)} in the one and "
                f"{describe(theirs[kind])} in the other; `recode` can make them alike"
            )


def _join_texts(sets: Sequence[FeatureSet]) -> list[dict]:
    """Lines of texts.jsonl, with split None where it is to be chosen anew."""
    rows: dict[str, dict] = {}
    for part in sets:
        texts = part.texts()
        own = not part.heldout or any(text.split not in ("train", "heldout") for text in texts)
        for text in texts:
            row = {**text.row(), "split": text.split if own else None}
            same = lambda other, row=row: (other["media"], other["turns"]) == (row["media"], row["turns"])  # noqa: E731
            names = (text.id if n == 0 else f"{text.id}-{n}" for n in itertools.count())
            name = next(name for name in names if name not in rows or same(rows[name]))
            rows.setdefault(name, {**row, "id": name})
    return list(rows.values())


def _rejected(features: FeatureSet) -> list[manifests.Reject]:
    path = features.path / manifests.REJECTED
    rows = json_objects(path.read_bytes()) if path.is_file() else []
    return [check_type(row, manifests.Reject, str(path), FeatureSetError) for row in rows]


def _thumbnails(sets: Sequence[FeatureSet]) -> Callable[[list[str]], Iterator[tuple[str, bytes]]]:
    def find(keys: list[str]) -> Iterator[tuple[str, bytes]]:
        for key in keys:
            if found := next((path for part in sets if (path := part.thumbnail(key))), None):
                yield key, found.read_bytes()

    return find
