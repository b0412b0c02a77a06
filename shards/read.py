"""Reading a feature set by position."""

import contextlib
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from periscope.errors import FeatureSetError
from periscope.positions import fill_at, read_at
from periscope.shards.features import STORED_DTYPES, CodedFeatures
from periscope.shards.index import BLOCK, KEY, Index, SampleRows, load_index, save_index, scan_shard
from periscope.shards.layout import layout
from periscope.shards.manifest import HELDOUT, TEXTS, THUMBNAILS, load_manifest
from periscope.shards.texts import Texts

JOINED_READ = 1 << 14  # a tensor this close to the tar header, or to the tensor before, comes with it in one read
READ_THROUGH = 1 << 22  # bytes of a read that is only to fill the cache
FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)  # the last on Windows
OPEN_FILES = 200  # per thread; the usual limit of a process is 1024


class FeatureSet:
    """A finished feature set. Safe to share between threads and to send to worker processes.

    path: its folder · manifest: a dict · keys: list of str in writing order · heldout: frozenset of the held-out keys ·
    sha256: identity of the shards · texts_sha256: identity of texts.jsonl.
    """

    def __init__(self, path: Path | str):
        """Open a set. Raises FeatureSetError when it isn't one, is unfinished, or a shard is missing or cut."""
        self.path = Path(path)
        self.manifest = load_manifest(self.path)
        self._local = threading.local()
        for shard in self.manifest["shards"]:
            file = self.path / shard["name"]
            size = file.stat().st_size if file.is_file() else None
            if size != shard["bytes"]:
                found = "is missing" if size is None else f"has {size} bytes where the manifest says {shard['bytes']}"
                raise FeatureSetError(f"{file} {found}: copy it again, or run precompute.py to make it anew")
        index = load_index(self.path, self.manifest["shards"], self.manifest["features"])
        self._use(index or self._rebuild())
        self.sha256 = hashlib.sha256("".join(s["sha256"] for s in self.manifest["shards"]).encode()).hexdigest()

    def _rebuild(self) -> Index:
        features = self.manifest["features"]
        samples = [SampleRows(scan_shard(self.path / shard["name"], features)) for shard in self.manifest["shards"]]
        for shard, rows in zip(self.manifest["shards"], samples, strict=True):
            if len(rows) != shard["samples"]:
                raise FeatureSetError(f"{shard['name']} holds {len(rows)} media, the manifest says {shard['samples']}")
        index = Index.from_rows(samples, features)
        with contextlib.suppress(OSError):  # a set on a read-only disk is read all the same
            save_index(self.path, index, self.manifest["shards"])
        return index

    def _use(self, index: Index) -> None:
        self._index = index
        self.keys = index.keys
        self._row = {key: row for row, key in enumerate(index.keys)}

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_local"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._local = threading.local()

    def _file(self, shard: int) -> int:
        files = getattr(self._local, "files", None)
        if files is None:
            files = self._local.files = _OpenFiles(self.path)
        return files.get(self.manifest["shards"][shard]["name"])

    def _entry(self, kind: str) -> dict:
        if kind not in self.manifest["features"]:
            have = ", ".join(self.manifest["features"])
            raise FeatureSetError(
                f"{self.path} holds no {kind!r} features, only {have}; run precompute.py with --kinds {kind}"
            )
        return self.manifest["features"][kind]

    def row(self, key: str) -> int:
        """A medium's position in writing order, the order on disk. Raises FeatureSetError for an unknown key."""
        row = self._row.get(key)
        if row is None:
            raise FeatureSetError(f"{self.path} holds no medium {key!r}")
        return row

    def _place(self, key: str) -> tuple[int, int, int]:
        """(row in the index, open file, position of the tar header) of a medium."""
        row = self.row(key)
        return row, self._file(int(self._index.shard[row])), int(self._index.member[row])

    def _member_size(self, key: str, header: bytes) -> int:
        """The size in a medium's tar header, after the key has been checked against the header's name."""
        digits = header[124:135]  # octal
        if not header.startswith(f"{key}.safetensors\0".encode()) or not digits.isdigit():
            raise FeatureSetError(f"{key} isn't where the index of {self.path} says: the shard was changed or damaged")
        return int(digits, 8)

    def _read_into(self, rows: dict[str, np.ndarray], key: str, view: int) -> None:
        """Fill a row of bytes for each tensor with one view of a medium's."""
        number, file, member = self._place(key)
        offsets, header = self._index.offsets, bytearray(BLOCK)
        spans = [(int(offsets[name][number]) - member + view * len(into), into, name) for name, into in rows.items()]
        spans.sort(key=lambda span: span[0])
        ends = [BLOCK, *(begin + len(into) for begin, into, _ in spans)]
        apart = all(begin >= end for (begin, *_), end in zip(spans, ends, strict=False))
        whole = _read_spans(file, member, [(0, header), *(span[:2] for span in spans if apart)])
        if self._member_size(key, bytes(header)) + BLOCK < ends[-1] or not (apart and whole):
            name = spans[-1][2]
            raise FeatureSetError(f"{name} of {key} in {self.path} reaches past its tar member: the shard is damaged")

    def read(self, key: str, kind: str, view: int = 0) -> torch.Tensor:
        """One medium's features: float16, shape as in the manifest. Raises FeatureSetError on an unknown key, kind or
        view.
        """
        return self.read_many([key], kind, [view])[0]

    def read_many(self, keys: Sequence[str], kind: str, views: Sequence[int] | None = None) -> torch.Tensor:
        """Features of several media: (batch, *shape) float16, of each the view asked for or the plain one.

        Raises FeatureSetError on an unknown key, kind or view, and when what lies at the index's position isn't this
        key's.
        """
        return self.read_coded(keys, kind, views).decode()

    def read_coded(self, keys: Sequence[str], kind: str, views: Sequence[int] | None = None) -> CodedFeatures:
        """As `read_many`, but not decoded yet."""
        entry = self._entry(kind)
        views = [0] * len(keys) if views is None else views
        if any(not 0 <= view < entry.get("views", 1) for view in views):
            raise FeatureSetError(f"{self.path} holds {entry.get('views', 1)} views of {kind}, not {max(views) + 1}")
        stored_as = layout(kind, {name: value for name, value in entry.items() if name != "views"})
        forms = {name: (STORED_DTYPES[dtype], shape) for name, (dtype, shape) in stored_as.items()}
        if not keys:
            nothing = {name: torch.empty((0, *shape), dtype=dtype) for name, (dtype, shape) in forms.items()}
            return CodedFeatures(kind, entry, nothing)
        sizes = {name: dtype.itemsize * prod(shape) for name, (dtype, shape) in forms.items()}
        buffers = {name: np.empty((len(keys), size), np.uint8) for name, size in sizes.items()}
        for row, (key, view) in enumerate(zip(keys, views, strict=True)):
            self._read_into({name: buffer[row] for name, buffer in buffers.items()}, key, view)
        stored = {
            name: torch.from_numpy(buffers[name]).view(dtype).view(len(keys), *shape)
            for name, (dtype, shape) in forms.items()
        }
        return CodedFeatures(kind, entry, stored)

    def stored(self, key: str) -> dict[str, torch.Tensor]:
        """All tensors of a medium as they lie in its shard: coded, with all views. Raises as `read_many`."""
        _, file, member = self._place(key)
        size = self._member_size(key, read_at(file, BLOCK, member))
        try:
            return load_tensors(read_at(file, size, member + BLOCK))
        except SafetensorError as error:
            raise FeatureSetError(f"{key} in {self.path} is damaged ({error}): copy the shard again") from None

    def read_through(self, first: int, last: int) -> None:
        """Read the media from row `first` to row `last` in disk order and discard them, to warm the page cache."""
        shards, members = (column[first : last + 1] for column in (self._index.shard, self._index.member))
        for shard in np.unique(shards).tolist():
            begin, end = int(members[shards == shard][0]), self.manifest["shards"][shard]["bytes"]
            if shard == shards[-1] and last + 1 < len(self) and self._index.shard[last + 1] == shard:
                end = int(self._index.member[last + 1])
            for place in range(begin, end, READ_THROUGH):
                read_at(self._file(shard), min(READ_THROUGH, end - place), place)

    def info(self, key: str) -> dict:
        """{"modality", "origin" (path relative to the data folder), "sha256" (of the medium's bytes)}."""
        row, index = self.row(key), self._index
        digest = index.hashes[row].tobytes().hex()
        return {"modality": self.manifest["modality"], "origin": index.origins[row], "sha256": digest}

    @property
    def heldout(self) -> frozenset[str]:
        """The keys of the held-out media."""
        if "_heldout" not in self.__dict__:
            path = self.path / HELDOUT
            if not path.is_file():
                raise FeatureSetError(f"{path} is missing: run the same precompute.py command again")
            try:
                self._heldout = frozenset(path.read_text(encoding="utf-8").split())
            except ValueError:
                raise FeatureSetError(f"{path} is damaged: run the same precompute.py command again") from None
        return self._heldout

    @property
    def texts_sha256(self) -> str:
        """The sha256 of texts.jsonl."""
        return hashlib.sha256((self.path / TEXTS).read_bytes()).hexdigest()

    def texts(self, path: Path | str | None = None, partial: bool = False) -> Texts:
        """The texts of the set, or those of another file in the same form.

        In another file a medium is named by its key or its origin, `split` may be missing (then it follows from what
        is held out), and the count of texts whose media are in the set is printed. Raises FeatureSetError on a
        malformed line, and on media that aren't in the set unless `partial`, which leaves their texts out.
        """
        file, names = self.path / TEXTS, {}
        if path is not None:
            origins = zip(self._index.origins, self.keys, strict=True)
            file, names = Path(path), {origin: key for origin, key in origins if origin not in self._row}
        texts = Texts(file, names)
        unmatched, first = texts.find(self._row, self.heldout)
        if path is not None:
            print(f"{file}: {len(texts)} texts match the set, {unmatched} don't")
        if unmatched and not partial:
            mend = "mend the file, or pass --partial to leave them out"
            if path is None:
                mend = "it was changed, or precompute was stopped: run the same precompute.py command again"
            raise FeatureSetError(
                f"{file}: {unmatched} texts name media that {self.path} lacks (first: {first!r}); {mend}"
            )
        return texts

    def thumbnail(self, key: str) -> Path | None:
        """The JPEG thumbnail of a held-out medium, or None."""
        path = self.path / THUMBNAILS / f"{key}.jpg"
        return path if KEY.fullmatch(key) and path.is_file() else None


def _read_spans(file: int, member: int, spans: list[tuple[int, np.ndarray | bytearray]]) -> bool:
    """Fill the buffers of ordered, disjoint spans (start after `member`, buffer); close neighbours take one read. False
    when the file ends early.
    """
    whole, buffers, start, end = True, list[Any](), 0, 0
    for begin, into in spans:
        if begin - end > JOINED_READ:
            whole &= fill_at(file, buffers, member + start) == end - start
            buffers, start = [], begin
        elif begin > end:
            buffers.append(bytearray(begin - end))
        buffers.append(into)
        end = begin + len(into)
    return whole and fill_at(file, buffers, member + start) == end - start


class _OpenFiles:
    """The files of a folder that one thread has open, with least-recently-used eviction."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.handles: OrderedDict[str, int] = OrderedDict()

    def get(self, name: str) -> int:
        if name in self.handles:
            self.handles.move_to_end(name)
            return self.handles[name]
        if len(self.handles) >= OPEN_FILES:
            os.close(self.handles.popitem(last=False)[1])
        self.handles[name] = os.open(self.folder / name, FLAGS)
        return self.handles[name]

    def __del__(self) -> None:
        for handle in self.handles.values():
            with contextlib.suppress(OSError):
                os.close(handle)
