"""Writing a feature set: shard by shard, then texts, index and manifest.

An unfinished set has a `progress.jsonl`: a header, then one line per complete shard. The manifest is written last. A
run killed at any moment therefore loses at most one shard of work, and a finished set that is being extended stays
readable until its new manifest replaces the old one.
"""

import errno
import hashlib
import itertools
import json
import os
import re
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, NotRequired, TypedDict

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from webdataset import TarWriter

from periscope.atomic import (
    TEMPORARY,
    Draft,
    json_line,
    lock_folder,
    naming,
    remove_leftovers,
    replace_bytes,
    replacing,
    sync_folder,
    unlock_folder,
)
from periscope.checked import check_type
from periscope.errors import FeatureSetError
from periscope.shards import index
from periscope.shards import manifest as manifests
from periscope.shards.features import decode
from periscope.shards.index import SHARD, Index, Sample, SampleRows, load_index, save_index, scan_shard, sha256_file
from periscope.shards.layout import describe, settle_storage
from periscope.shards.manifest import HELDOUT, REJECTED, TEXTS, THUMBNAILS

PROGRESS = "progress.jsonl"
FILES = (PROGRESS, REJECTED, TEXTS, HELDOUT, index.NAME, manifests.NAME)
STORAGE = ("shape", "codec", "pool", "views", "augmentation")  # what may not change while a set grows
PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT)  # errors
SHARD_BYTES = 512 << 20
SHARD_SAMPLES = 4096  # bounds what a killed run loses where samples are small


def make_key(origin: str) -> str:
    """The key of a medium, from its path relative to the data folder: a readable part, then 64 bits of the path's
    sha256.

    No dots (webdataset splits there), no upper case (some file systems ignore case), no slashes. Different paths give
    different keys, even if they differ only in case, folder or Unicode form.
    """
    stem = origin.rsplit(".", 1)[0] if "." in origin.rsplit("/", 1)[-1] else origin
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode().lower()
    readable = re.sub(r"[^a-z0-9_]+", "-", plain).strip("-")[-40:].strip("-")
    digest = hashlib.sha256(os.fsencode(origin)).hexdigest()[:16]
    return f"{readable}-{digest}" if readable else digest


class _Header(TypedDict):
    """The first line of progress.jsonl; in format 1 `features` held the shapes alone, and `codec` stood beside them."""

    format: Literal[1, 2]
    fingerprint: str
    encoder: str
    features: dict[str, dict | list[int]]
    codec: NotRequired[str]


class _Line(TypedDict):
    """Every other line of progress.jsonl."""

    shard: manifests.Shard | None
    rejected: list[manifests.Reject]


class SetWriter:
    """A feature set that is being written, resumed or extended. Use as a context manager; it locks the folder.

    modality: "image", ... · encoder: `Encoder.describe()` · features: kind -> entry (see `features.py`). Raises
    FeatureSetError when the folder holds anything else, or a set with another encoder, other kinds or other storage.
    """

    def __init__(self, folder: Path, modality: str, encoder: dict, features: Mapping[str, dict]):
        self.folder, self.modality, self.encoder = Path(folder), modality, encoder
        self.features = settle_storage(features)
        self.manifest: dict | None = None
        self.finished: list[dict] = []  # shards of the finished set
        self.fresh: list[dict] = []  # shards made since
        self.rejected: list[dict] = []  # what the fresh shards had to leave out
        self.settled_rejects: dict[str, str] = {}  # origin -> content hash, within the run being resumed
        self._samples: dict[str, SampleRows] = {}
        self._pool: dict[tuple[str, str], tuple[str, Sample]] = {}
        self._pooled: set[str] = set()  # the keys in it
        self._noting = threading.Lock()

    def __enter__(self) -> "SetWriter":
        check_folder(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = lock_folder(self.folder)
        except BlockingIOError as error:
            raise FeatureSetError(
                f"another precompute is writing {self.folder}: wait for it, or choose another --out"
            ) from error
        try:
            self._open()
        except BaseException:
            unlock_folder(self._lock)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        unlock_folder(self._lock)

    def _header(self) -> dict:
        return {
            "format": manifests.FORMAT,
            "fingerprint": self.encoder["fingerprint"],
            "encoder": self.encoder["name"],
            "features": dict(sorted(self.features.items())),
        }

    def _refuse(self, name: str, fingerprint: str, features: Mapping[str, Mapping]) -> None:
        if fingerprint != self.encoder["fingerprint"]:
            raise FeatureSetError(
                f"{self.folder} holds features of another encoder, layer or preprocessing ({name}); "
                f"choose another --out, such as --out {self.folder}-{self.encoder['name'].rpartition('/')[2]}"
            )
        if set(features) != set(self.features):
            raise FeatureSetError(
                f"{self.folder} holds the kinds {', '.join(sorted(features))}, not {', '.join(sorted(self.features))}; "
                "ask for the same --kinds or choose another --out"
            )
        for kind, entry in features.items():
            if any(entry.get(name) != self.features[kind].get(name) for name in STORAGE):
                raise FeatureSetError(
                    f"{self.folder} holds {kind} as {describe(entry)}, not as {describe(self.features[kind])}: "
                    "ask for the same --store, --pool and --views or choose another --out"
                )

    def _open(self) -> None:
        _remove_leftovers(self.folder)
        if (self.folder / manifests.NAME).is_file():
            self.manifest = manifests.load_manifest(self.folder)
            encoder = self.manifest["encoder"]
            self._refuse(encoder.get("name", "?"), encoder["fingerprint"], self.manifest["features"])
            self.finished = list(self.manifest["shards"])
            self.rejected += _remembered(self.folder / REJECTED)
        lines = _whole_lines(self.folder / PROGRESS)
        if lines:
            header = lines.pop(0)
            features = header["features"]
            if header["format"] == 1:
                codec = header.get("codec", "fp16")
                features = {kind: {"shape": shape, "codec": codec} for kind, shape in features.items()}
            for entry in features.values():
                whole = entry | {"dtype": "float16"} if isinstance(entry, dict) else entry
                check_type(whole, manifests.Stored, f"{self.folder / PROGRESS}", FeatureSetError, "delete it")
            self._refuse(header["encoder"], header["fingerprint"], features)
            for line in lines:
                if line["shard"]:
                    self.fresh.append(line["shard"])
                self.rejected += line["rejected"]
            self.settled_rejects = {row["origin"]: row.get("sha256", "") for row in self.rejected}
        self._read_samples()

    def _read_samples(self) -> None:
        for shards in (self.finished, self.fresh):
            for shard in list(shards):
                path = self.folder / shard["name"]
                try:
                    if path.stat().st_size != shard["bytes"]:
                        raise FeatureSetError(f"{path} isn't {shard['bytes']} bytes long")
                    self._samples[shard["name"]] = SampleRows(scan_shard(path, self.features))
                except (OSError, FeatureSetError) as error:
                    _check_passing(error, path)
                    print(f"making {shard['name']} again: {error}")
                    shards.remove(shard)

    def known(self) -> dict[str, tuple[str, str]]:
        """key -> (origin, content hash) of every medium that is already encoded."""
        rows = (sample for samples in self._samples.values() for sample in samples)
        return {sample.key: (sample.origin, sample.sha256) for sample in rows}

    def read_stored(self, kind: str, wanted: Callable[[Sample], bool]) -> Iterator[tuple[Sample, torch.Tensor]]:
        """Stored features of the samples for which `wanted` is true: the plain view, float16."""
        entry = self.features[kind]
        for shard in self.finished + self.fresh:
            for sample in filter(wanted, self._samples[shard["name"]]):
                stored = self._load(shard["name"], sample)
                mine = {name: tensor for name, tensor in stored.items() if name.partition(".")[0] == kind}
                plain = {name: tensor[:1] if "views" in entry else tensor[None] for name, tensor in mine.items()}
                yield sample, decode(kind, plain, entry)[0]

    def settle(self, hashes: Mapping[str, str]) -> set[str]:
        """Keep the shards whose media are all still wanted and unchanged; return their keys.

        hashes: key -> current content hash, of the keys in `known()` that still exist. Unchanged samples of the other
        shards remain available through `stored`.
        """
        kept: set[str] = set()
        for shards in (self.finished, self.fresh):
            for shard in list(shards):
                samples = self._samples[shard["name"]]
                good = [s for s in samples if hashes.get(s.key) == s.sha256 and s.key not in kept]
                if len(good) == len(samples):
                    kept.update(s.key for s in samples)
                    continue
                shards.remove(shard)
                self._pool |= {(s.key, s.sha256): (shard["name"], s) for s in good}
                self._pooled.update(s.key for s in good)
        return kept

    def reusable(self, key: str) -> frozenset[str]:
        """The content hashes for which `stored` has the tensors of this medium."""
        return frozenset(digest for known, digest in self._pool if known == key) if key in self._pooled else frozenset()

    def remember(self, origin: str, reason: str, detail: str, sha256: str) -> None:
        """List one medium as left out at once, whatever becomes of the shard that is being written."""
        self._begin()
        row = {"origin": origin, "reason": reason, "detail": detail, "sha256": sha256}
        self._note({"shard": None, "rejected": [row]})
        self.rejected.append(row)

    def _begin(self) -> None:
        with self._noting:
            if not (self.folder / PROGRESS).is_file():
                replace_bytes(self.folder / PROGRESS, json_line(self._header()))

    def _note(self, line: dict) -> None:
        with self._noting, naming(self.folder / PROGRESS), open(self.folder / PROGRESS, "ab") as progress:
            progress.write(json_line(line))
            progress.flush()
            os.fsync(progress.fileno())

    def stored(self, key: str, digest: str) -> dict[str, torch.Tensor] | None:
        """The tensors of an unchanged medium in a shard that is being rewritten, as for `add`; None without one."""
        if (key, digest) not in self._pool:
            return None
        return self._load(*self._pool[key, digest])

    def _load(self, name: str, sample: Sample) -> dict[str, torch.Tensor]:
        with open(self.folder / name, "rb") as stream:
            stream.seek(sample.member)
            size = int(stream.read(index.BLOCK)[124:135], 8)
            return load_tensors(stream.read(size))

    @contextmanager
    def shard(self) -> Iterator["ShardWriter"]:
        """Write the next shard: `add` and `reject` inside the block. Nothing is left of it when the block raises."""
        self._begin()
        taken = {shard["name"] for shard in self.finished + self.fresh} | {name for name, _ in self._pool.values()}
        taken |= {shard["name"] for shard in self.manifest["shards"]} if self.manifest else set()
        number = next(number for number in itertools.count() if _name(number) not in taken)
        path = self.folder / _name(number)
        with replacing(path) as stream:
            shard = ShardWriter(stream)
            try:
                yield shard
            finally:
                shard.close()
            stream.flush()
            written = Path(stream.name)
            samples = scan_shard(written, self.features)
            entry = {
                "name": path.name,
                "bytes": written.stat().st_size,
                "sha256": sha256_file(written),
                "samples": len(samples),
            }
            if len(samples) != shard.samples:
                raise FeatureSetError(
                    f"{written} holds {len(samples)} media after {shard.samples} were written: disk trouble?"
                )
        if samples:
            self.fresh.append(entry)
            self._samples[path.name] = SampleRows(samples, shard.names)
        else:
            path.unlink()
        self._note({"shard": entry if samples else None, "rejected": shard.rejected})
        self.rejected += shard.rejected

    def samples(self) -> Iterator[Sample]:
        """All samples of the set at present, in writing order."""
        return (sample for shard in self.finished + self.fresh for sample in self._samples[shard["name"]])

    def finish(
        self,
        texts: Iterable[dict],
        heldout: set[str],
        thumbnails: Callable[[list[str]], Iterable[tuple[str, bytes]]],
        rejected: Sequence[Mapping[str, Any]],
    ) -> bool:
        """Complete the set. Returns False, leaving all files untouched, when it was complete and nothing changed.

        texts: lines of texts.jsonl with resolved splits · heldout: keys · thumbnails: keys -> (key, JPEG bytes) pairs ·
        rejected: {"origin", "reason", "detail"} of all media left out, with "sha256" of those to be remembered.
        """
        shards = self.finished + self.fresh
        if not shards:
            raise FeatureSetError("not one medium could be encoded; rejected media are listed above")
        drafts: dict[str, Draft] = {}
        try:
            drafts[TEXTS] = Draft(self.folder / TEXTS, map(json_line, texts))
            drafts[HELDOUT] = Draft(self.folder / HELDOUT, (f"{key}\n".encode() for key in sorted(heldout)))
            drafts[REJECTED] = Draft(self.folder / REJECTED, map(json_line, rejected))
            return self._complete(drafts, shards, heldout, thumbnails)
        finally:
            for draft in drafts.values():
                draft.drop()

    def _complete(
        self,
        drafts: Mapping[str, Draft],
        shards: list[dict],
        heldout: set[str],
        thumbnails: Callable[[list[str]], Iterable[tuple[str, bytes]]],
    ) -> bool:
        """Put the drafts of the files beside the shards in place, where something changed; see `finish`."""
        order = [shard["name"] for shard in shards]
        manifest = {
            "format": manifests.FORMAT,
            "name": self.folder.resolve().name,
            "modality": self.modality,
            "encoder": self.encoder,
            "features": self.features,
            "counts": {
                "media": sum(shard["samples"] for shard in shards),
                "heldout": len(heldout),
                "texts": drafts[TEXTS].lines,
                "rejected": drafts[REJECTED].lines,
            },
            "shards": shards,
        }
        new = {sample.key for shard in self.fresh for sample in self._samples[shard["name"]] if sample.key in heldout}
        pictures = self._thumbnails(sorted(heldout - new))
        unseen = [key for key in sorted(heldout) if key not in pictures] if self.modality != "vector" else []
        files = {name: draft.sha256 for name, draft in drafts.items()}
        if (
            self.manifest
            and not any(draft.differs for draft in drafts.values())
            and not unseen
            and self.manifest["shards"] == shards
            and self.manifest["counts"] == manifest["counts"]
            and self.manifest.get("files") == files | _named(pictures)
            and manifests.is_sealed(self.folder)
        ):
            if load_index(self.folder, shards, self.features) is None:
                save_index(self.folder, self._index(order), shards)
            self._clear(order, heldout)
            return False
        (self.folder / THUMBNAILS).mkdir(exist_ok=True)
        for key, jpeg in thumbnails(unseen):
            replace_bytes(self.folder / THUMBNAILS / f"{key}.jpg", jpeg)
            pictures[key] = hashlib.sha256(jpeg).hexdigest()
        for draft in drafts.values():
            draft.publish()
        save_index(self.folder, self._index(order), shards)
        manifests.save_manifest(self.folder, manifest | {"files": files | _named(pictures)})
        self._clear(order, heldout)
        return True

    def _thumbnails(self, keys: Iterable[str]) -> dict[str, str]:
        """key -> sha256 of the thumbnails that are there, without those that aren't what the manifest says."""
        known = self.manifest.get("files", {}) if self.manifest else {}
        found = {}
        for key in keys:
            path = self.folder / THUMBNAILS / f"{key}.jpg"
            if path.is_file() and (digest := sha256_file(path)) == known.get(f"{THUMBNAILS}/{key}.jpg", digest):
                found[key] = digest
        return found

    def _clear(self, order: list[str], heldout: set[str]) -> None:
        """Delete files that the manifest no longer names."""
        for path in self.folder.glob("shard-??????.tar"):
            if path.name not in order:
                path.unlink()
        for path in (self.folder / THUMBNAILS).glob("*.jpg"):
            if path.stem not in heldout:
                path.unlink()
        (self.folder / PROGRESS).unlink(missing_ok=True)
        sync_folder(self.folder)

    def _index(self, order: list[str]) -> Index:
        return Index.from_rows([self._samples[name] for name in order], self.features)


class ShardWriter:
    """Adds samples to one shard: a webdataset tar with a fixed mtime, so that equal samples give equal bytes."""

    def __init__(self, stream: BinaryIO):
        self._tar = TarWriter(stream, encoder=False, mtime=0)
        self.samples = 0
        self.names: dict[str, str] = {}  # the keys and origins as they were given, which the caller may keep anyway
        self.rejected: list[dict] = []

    def add(self, key: str, tensors: Mapping[str, torch.Tensor], info: Mapping[str, str]) -> None:
        """Store one medium: its tensors as `features.encode` gives them, and {"modality", "origin", "sha256"}."""
        line = json.dumps(dict(info)).encode()
        self._tar.write({"__key__": key, "json": line, "safetensors": save_tensors(dict(tensors))})
        self.samples += 1
        self.names |= {key: key, info["origin"]: info["origin"]}

    def reject(self, origin: str, reason: str, detail: str = "", sha256: str = "") -> None:
        """List one medium as left out."""
        self.rejected.append({"origin": origin, "reason": reason, "detail": detail, "sha256": sha256})

    def close(self) -> None:
        """Write the end of the tar."""
        self._tar.close()


def samples_per_shard(bytes_each: int) -> int:
    """Number of media of this size per shard."""
    return max(1, min(SHARD_SAMPLES, SHARD_BYTES // max(1, bytes_each)))


def check_folder(folder: Path) -> None:
    """Raise FeatureSetError when `folder` holds anything but a feature set, finished or not."""
    folder = Path(folder)
    if folder.is_file():
        raise FeatureSetError(f"{folder} is a file; --out names the folder of a feature set")
    if not folder.is_dir() or (folder / manifests.NAME).is_file() or (folder / PROGRESS).is_file():
        return
    if strange := [path.name for path in folder.iterdir() if not path.name.startswith(".") and not _is_leftover(path)]:
        raise FeatureSetError(
            f"{folder} holds something else than a feature set ({min(strange)}); choose another --out"
        )


def tidy(folder: Path) -> None:
    """Delete what a run that was killed just after it had completed a set left beside it."""
    try:
        lock = lock_folder(folder)
    except BlockingIOError:
        return  # it is being extended
    try:
        _remove_leftovers(folder)
        shards = manifests.load_manifest(folder)["shards"]
        if all(line["shard"] in shards and not line["rejected"] for line in _whole_lines(folder / PROGRESS)[1:]):
            (folder / PROGRESS).unlink(missing_ok=True)
    finally:
        unlock_folder(lock)


def _remove_leftovers(folder: Path) -> None:
    for place in (folder, folder / THUMBNAILS):
        remove_leftovers(place)
    for leftover in [*folder.iterdir(), *(folder / THUMBNAILS).glob("*" + TEMPORARY)]:
        if _is_leftover(leftover):
            leftover.unlink()


def _is_leftover(path: Path) -> bool:
    """Whether it is a temporary file left by a killed run."""
    name = path.name.removesuffix(TEMPORARY)
    return path.name.endswith(TEMPORARY) and (
        name in FILES or path.parent.name == THUMBNAILS or bool(SHARD.fullmatch(name))
    )


def _check_passing(error: Exception, path: Path) -> None:
    """Raise what the machine lacked for a moment, which doesn't damage a shard. error: of reading it."""
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, OSError) and cause.errno in PASSING:
        with naming(path):
            raise cause


def _remembered(path: Path) -> list[dict]:
    """The lines of a finished set's rejected.jsonl that have a content hash: files that no later run should meet."""
    rows = []
    for line in (_bytes_of(path) or b"").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and all(isinstance(row.get(name), str) for name in ("origin", "reason", "sha256")):
            rows.append({"detail": "", **row})
    return rows


def _named(thumbnails: Mapping[str, str]) -> dict[str, str]:
    """Thumbnails by their path in the set instead of their key."""
    return {f"{THUMBNAILS}/{key}.jpg": thumbnails[key] for key in sorted(thumbnails)}


def _name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def _bytes_of(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _whole_lines(path: Path) -> list[dict]:
    """The complete lines of a progress file; an incomplete last line is also removed from the file."""
    data, lines, good = _bytes_of(path) or b"", list[dict](), 0
    for line in data.splitlines(keepends=True):
        try:
            value = json.loads(line)
            check_type(value, _Line if lines else _Header, str(path), FeatureSetError)
        except (ValueError, RecursionError):
            break
        if not line.endswith(b"\n"):
            break
        lines.append(value)
        good += len(line)
    if data and not good:
        path.unlink()
    elif good < len(data):
        replace_bytes(path, data[:good])
    return lines
