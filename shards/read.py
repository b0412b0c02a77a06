"""Reading a feature set by position."""

import contextlib
import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from . import FeatureSetError
from .features import decode_fp16
from .index import BLOCK, KEY, Index, load_index, save_index, scan_shard
from .manifest import load_manifest

TEXTS = "texts.jsonl"
HELDOUT = "heldout.txt"
THUMBNAILS = "thumbnails"
ROLES = ("system", "user", "assistant")
JOINED_READ = 1 << 14  # a tensor this close to its tar header comes with it in one pread
OPEN_FILES = 200  # per thread; the usual limit of a process is 1024


@dataclass(frozen=True)
class Text:
    """One text: its id, the keys of its media in order, its turns ({"role", "content"}), its split, what else is
    known.
    """

    id: str
    media: tuple[str, ...]
    turns: tuple[dict, ...]
    split: str
    meta: dict = field(default_factory=dict)


class FeatureSet:
    """A finished feature set. Safe to share between threads and to send to worker processes.

    path: its folder · manifest: a dict · keys: list of str in writing order · heldout: frozenset of the keys that no
    training may see · sha256: identity of the shards · texts_sha256: identity of texts.jsonl.
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
                raise FeatureSetError(f"{file} {found}: copy it again, or run precompute to make it anew")
        index = load_index(self.path, self.manifest["shards"], list(self.manifest["features"]))
        self._use(index or self._rebuild())
        self.sha256 = hashlib.sha256("".join(s["sha256"] for s in self.manifest["shards"]).encode()).hexdigest()

    def _rebuild(self) -> Index:
        features = self.manifest["features"]
        samples = [scan_shard(self.path / shard["name"], features) for shard in self.manifest["shards"]]
        for shard, rows in zip(self.manifest["shards"], samples, strict=True):
            if len(rows) != shard["samples"]:
                raise FeatureSetError(f"{shard['name']} holds {len(rows)} media, the manifest says {shard['samples']}")
        index = Index.from_samples(samples, features)
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
            files = self._local.files = _OpenFiles()
        return files.get(self.path / self.manifest["shards"][shard]["name"])

    def _shape(self, kind: str) -> list[int]:
        if kind not in self.manifest["features"]:
            have = ", ".join(self.manifest["features"])
            raise FeatureSetError(
                f"{self.path} holds no {kind!r} features, only {have}; run precompute with --kinds {kind}"
            )
        return self.manifest["features"][kind]["shape"]

    def _payload(self, key: str, kind: str, size: int) -> bytes:
        """The bytes of one tensor, after its key has been checked against the tar header before it."""
        row = self._row.get(key)
        if row is None:
            raise FeatureSetError(f"{self.path} holds no medium {key!r}")
        file, member = self._file(int(self._index.shard[row])), int(self._index.member[row])
        skip = int(self._index.offsets[kind][row]) - member
        if BLOCK <= skip <= JOINED_READ:
            data = os.pread(file, skip + size, member)
            header, payload = data[:BLOCK], data[skip:]
        else:
            header, payload = os.pread(file, BLOCK, member), os.pread(file, size, member + skip)
        name = f"{key}.safetensors".encode()
        if skip < BLOCK or not header.startswith(name + b"\0") or len(payload) != size:
            raise FeatureSetError(f"{key} isn't where the index of {self.path} says: the shard was changed or damaged")
        digits = header[124:135]  # the tar header's size field, octal
        if not digits.isdigit() or skip + size > BLOCK + int(digits, 8):
            raise FeatureSetError(f"{kind} of {key} in {self.path} reaches past its tar member: the shard is damaged")
        return payload

    def read(self, key: str, kind: str) -> torch.Tensor:
        """One medium's features: float16, shape as in the manifest. Raises FeatureSetError on an unknown key or
        kind.
        """
        return self.read_many([key], kind)[0]

    def read_many(self, keys: Sequence[str], kind: str) -> torch.Tensor:
        """Features of several media: (batch, *shape) float16. Raises FeatureSetError on an unknown key or kind, and
        when what lies at the index's position isn't this key's.
        """
        shape = self._shape(kind)
        size = 2 * int(np.prod(shape))
        out = torch.empty((len(keys), *shape), dtype=torch.float16)
        rows = out.view(torch.uint8).numpy().reshape(len(keys), size) if len(keys) else []
        for row, key in zip(rows, keys, strict=True):
            row[:] = np.frombuffer(self._payload(key, kind, size), np.uint8)
        return decode_fp16(out)

    def info(self, key: str) -> dict:
        """{"modality", "origin" (path relative to the data folder), "sha256" (of the medium's bytes)}."""
        if key not in self._row:
            raise FeatureSetError(f"{self.path} holds no medium {key!r}")
        return dict(self._index.infos[self._row[key]])

    @property
    def heldout(self) -> frozenset[str]:
        """The keys of the media that are held out of training."""
        if "_heldout" not in self.__dict__:
            path = self.path / HELDOUT
            if not path.is_file():
                raise FeatureSetError(f"{path} is missing: run the same precompute.py command again")
            self._heldout = frozenset(path.read_text().split())
        return self._heldout

    @property
    def texts_sha256(self) -> str:
        """The sha256 of texts.jsonl."""
        return hashlib.sha256((self.path / TEXTS).read_bytes()).hexdigest()

    def texts(self, path: Path | str | None = None, partial: bool = False) -> list[Text]:
        """The texts of the set, or those of another file in the same form.

        In another file a medium is named by its key or its origin, `split` may be missing (then it follows from what
        is held out), and the count of texts whose media are in the set is printed. Raises FeatureSetError on a
        malformed line, and on media that aren't in the set unless `partial`, which leaves their texts out.
        """
        file = self.path / TEXTS if path is None else Path(path)
        if not file.is_file():
            raise FeatureSetError(f"{file} doesn't exist; name a file with one JSON text per line")
        names = {key: key for key in self.keys}
        if path is not None:
            names = {info["origin"]: key for key, info in zip(self.keys, self._index.infos, strict=True)} | names
        texts, unmatched = [], []
        with open(file, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                line_texts = parse_text(line, f"{file}, line {number}", default_id=f"line-{number}")
                if missing := [name for name in line_texts["media"] if name not in names]:
                    unmatched.append(missing[0])
                    continue
                media = tuple(names[name] for name in line_texts["media"])
                split = line_texts["split"] or ("heldout" if self.heldout.intersection(media) else "train")
                turns = tuple(line_texts["turns"])
                texts.append(Text(line_texts["id"], media, turns, split, line_texts["meta"]))
        if path is not None:
            print(f"{file}: {len(texts)} texts match the set, {len(unmatched)} don't")
        if unmatched and not partial:
            mend = "mend the file, or pass --partial to leave them out"
            if path is None:
                mend = "it was changed, or precompute was stopped: run the same precompute.py command again"
            raise FeatureSetError(
                f"{file}: {len(unmatched)} texts name media that {self.path} lacks (first: {unmatched[0]!r}); {mend}"
            )
        return texts

    def thumbnail(self, key: str) -> Path | None:
        """The JPEG thumbnail of a held-out medium, or None."""
        path = self.path / THUMBNAILS / f"{key}.jpg"
        return path if KEY.fullmatch(key) and path.is_file() else None


def parse_text(line: str, where: str, default_id: str) -> dict:
    """One line of a texts file -> {"id", "media", "turns", "split" or None, "meta"}, every field checked.

    Raises FeatureSetError naming `where`.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FeatureSetError(f"{where}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise FeatureSetError(f"{where}: a text is a JSON object with media and turns")
    media, turns = row.get("media", []), row.get("turns")
    media = [media] if isinstance(media, str) else media
    if not isinstance(media, list) or not all(isinstance(name, str) for name in media):
        raise FeatureSetError(f"{where}: media must be a list of names")
    if not isinstance(turns, list) or not turns:
        raise FeatureSetError(f'{where}: turns must be a list of {{"role", "content"}}')
    for turn in turns:
        if not isinstance(turn, dict) or turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
            raise FeatureSetError(f"{where}: each turn needs a role ({', '.join(ROLES)}) and a content that is text")
    split, meta = row.get("split"), row.get("meta") or {}
    if not (split is None or (isinstance(split, str) and split)) or not isinstance(meta, dict):
        raise FeatureSetError(f"{where}: split must be a word and meta an object")
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    return {"id": str(row.get("id", default_id)), "media": media, "turns": turns, "split": split, "meta": meta}


class _OpenFiles:
    """The files one thread has open, the least recently used closed first."""

    def __init__(self) -> None:
        self.handles: OrderedDict[Path, int] = OrderedDict()

    def get(self, path: Path) -> int:
        if path in self.handles:
            self.handles.move_to_end(path)
            return self.handles[path]
        if len(self.handles) >= OPEN_FILES:
            os.close(self.handles.popitem(last=False)[1])
        self.handles[path] = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        return self.handles[path]

    def __del__(self) -> None:
        for handle in self.handles.values():
            with contextlib.suppress(OSError):
                os.close(handle)
