"""The position of each tensor in the shards, so that a read is one `pread`.

The index is a cache of the tar headers. It carries the sha256 of the shards and a checksum of itself; an index that is
missing, damaged or of other shards is rebuilt from the headers.
"""

import hashlib
import json
import re
import struct
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from periscope.atomic import replace_bytes
from periscope.errors import FeatureSetError
from periscope.shards.layout import layout

NAME = "index.safetensors"
KEY = re.compile(r"[a-z0-9_-]{1,80}")
SHA256 = re.compile(r"[0-9a-f]{64}")
SHARD = re.compile(r"shard-\d{6}\.tar")
BLOCK = 512
MAX_HEADER = 1 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """One medium in a shard.

    member: byte position of the tar header of `<key>.safetensors` · offsets: the byte position of each tensor, in the
    order of `tensor_names` · origin, sha256: as in `<key>.json`.
    """

    key: str
    member: int
    offsets: tuple[int, ...]
    origin: str
    sha256: str


class SampleRows(Sequence):
    """The samples of a shard in a tenth of the memory of `Sample` objects, apart from keys and origins.

    samples: as from `scan_shard` · shared: string -> an equal string that is in memory anyway, used in its place.
    """

    def __init__(self, samples: Sequence[Sample], shared: Mapping[str, str] | None = None):
        shared = shared or {}
        self.keys = [shared.get(sample.key, sample.key) for sample in samples]
        self.origins = [shared.get(sample.origin, sample.origin) for sample in samples]
        self.member = np.array([sample.member for sample in samples], np.int64)
        self.offsets = np.array([sample.offsets for sample in samples], np.int64).reshape(len(samples), -1)
        self.hashes = np.frombuffer(bytes.fromhex("".join(s.sha256 for s in samples)), np.uint8).reshape(-1, 32)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, n: int) -> Sample:  # type: ignore[override]  # no slices
        digest, offsets = self.hashes[n].tobytes().hex(), tuple(self.offsets[n].tolist())
        return Sample(self.keys[n], int(self.member[n]), offsets, self.origins[n], digest)

    def __iter__(self) -> Iterator[Sample]:
        return (self[n] for n in range(len(self)))


def sha256_file(path: Path) -> str:
    """The sha256 of a file as hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _tensor_table(archive: tarfile.TarFile, member: tarfile.TarInfo, shard: str) -> dict[str, tuple[int, dict]]:
    """name -> (byte position in the shard, safetensors header entry), with every bound checked."""
    stream: Any = archive.fileobj
    stream.seek(member.offset_data)
    start = stream.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
    if not 0 < length <= min(MAX_HEADER, member.size - 8):
        raise FeatureSetError(f"{shard}: {member.name} isn't a safetensors file")
    try:
        header = json.loads(stream.read(length))
        table = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            if not (type(begin) is type(end) is int and 0 <= begin <= end <= member.size - 8 - length):
                raise ValueError(name)
            table[name] = (member.offset_data + 8 + length + begin, entry)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FeatureSetError(f"{shard}: {member.name} has a damaged safetensors header") from error
    return table


def scan_shard(path: Path, features: Mapping[str, Mapping]) -> list[Sample]:
    """Read the headers of one shard and return its samples in writing order.

    features: kind -> manifest entry. Raises FeatureSetError when the tar is truncated, a member has no partner, a key
    repeats or is invalid, or a tensor differs from the manifest. Nothing is unpacked.
    """
    tensors: dict[str, tuple[int, tuple[int, ...]]] = {}
    infos: dict[str, tuple[str, str]] = {}
    order: list[str] = []
    wanted = {name: form for kind, entry in features.items() for name, form in layout(kind, entry).items()}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                key, _, suffix = member.name.partition(".")
                if not member.isreg() or not KEY.fullmatch(key) or suffix not in ("json", "safetensors"):
                    raise FeatureSetError(f"{path.name}: {member.name!r} doesn't belong in a feature shard")
                if key not in tensors and key not in infos:
                    order.append(key)
                elif key in (infos if suffix == "json" else tensors):
                    raise FeatureSetError(f"{path.name}: {member.name} is there twice")
                if suffix == "json":
                    if member.size > MAX_HEADER:
                        raise FeatureSetError(f"{path.name}: {member.name} is too large")
                    infos[key] = _origin_and_hash(_content(archive, member), f"{path.name}: {key}.json")
                    continue
                table = _tensor_table(archive, member, path.name)
                for name, (dtype, shape) in wanted.items():
                    entry = table.get(name, (0, {}))[1]
                    if entry.get("dtype") != dtype or entry.get("shape") != shape:
                        raise FeatureSetError(f"{path.name}: {name} of {key} should be {dtype} {shape}")
                tensors[key] = (member.offset, tuple(table[name][0] for name in wanted))
    except (tarfile.TarError, OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FeatureSetError(
            f"{path}: can't be read as a shard ({error}); copy it again or run precompute.py"
        ) from error
    if lonely := set(tensors) ^ set(infos):
        raise FeatureSetError(f"{path.name}: {min(lonely)} lacks its .json or .safetensors; the shard was cut short")
    return [Sample(key, *tensors[key], *infos[key]) for key in order]


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    return stream.read() if stream else b""


def _origin_and_hash(data: bytes, name: str) -> tuple[str, str]:
    try:
        info = json.loads(data)
    except (ValueError, RecursionError):
        info = None
    if not isinstance(info, dict) or not all(isinstance(info.get(n), str) for n in ("origin", "sha256")):
        raise FeatureSetError(f"{name} lacks its origin or content hash")
    if not SHA256.fullmatch(info["sha256"]):
        raise FeatureSetError(f"{name}: {info['sha256'][:80]!r} is no sha256")
    return info["origin"], info["sha256"]


@dataclass
class Index:
    """All samples of a set in writing order, as arrays.

    shard (n,) int32 · member (n,) int64 · offsets: tensor's name -> (n,) int64 · keys, origins: lists of length n ·
    hashes (n, 32) uint8.
    """

    keys: list[str]
    shard: np.ndarray
    member: np.ndarray
    offsets: dict[str, np.ndarray]
    origins: list[str]
    hashes: np.ndarray

    @classmethod
    def from_rows(cls, shards: Sequence[SampleRows], features: Mapping[str, Mapping]) -> "Index":
        """Join the samples of the shards, in the manifest's order; `features` is the manifest's.

        Raises FeatureSetError on a key that repeats.
        """
        keys = [key for rows in shards for key in rows.keys]
        if len(set(keys)) != len(keys):
            raise FeatureSetError("two shards hold the same key; run precompute.py into a new folder")
        return cls(
            keys,
            np.repeat(np.arange(len(shards), dtype=np.int32), [len(rows) for rows in shards]),
            np.concatenate([rows.member for rows in shards]),
            {
                name: np.concatenate([rows.offsets[:, column] for rows in shards])
                for column, name in enumerate(tensor_names(features))
            },
            [origin for rows in shards for origin in rows.origins],
            np.concatenate([rows.hashes for rows in shards]),
        )


def tensor_names(features: Mapping[str, Mapping]) -> list[str]:
    """The tensors of each medium in a set, in the order of its kinds."""
    return [name for kind, entry in features.items() for name in layout(kind, entry)]


def _identity(shards: list[dict], names: Iterable[str]) -> np.ndarray:
    text = json.dumps([[[s["name"], s["bytes"], s["sha256"]] for s in shards], sorted(names)])
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)


def _checksum(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]))  # type: ignore[arg-type]  # an array is a buffer
    return np.frombuffer(digest.digest(), np.uint8)


def _joined(strings: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(all strings joined, the end of each in characters). File names that aren't Unicode survive."""
    ends = np.cumsum([len(string) for string in strings], dtype=np.int64)
    return np.frombuffer("".join(strings).encode("utf-8", "surrogatepass"), np.uint8), ends


def _parted(joined: np.ndarray, ends: np.ndarray) -> list[str]:
    whole, ends = joined.tobytes().decode("utf-8", "surrogatepass"), ends.tolist()
    return [whole[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def save_index(folder: Path, index: Index, shards: list[dict]) -> None:
    """Write the index of a set beside its shards. `shards` is the manifest's list."""
    arrays = {"shard": index.shard, "member": index.member, "identity": _identity(shards, index.offsets)}
    arrays |= {f"offset.{name}": values for name, values in index.offsets.items()}
    arrays["keys"], arrays["keys.ends"] = _joined(index.keys)
    arrays["origins"], arrays["origins.ends"] = _joined(index.origins)
    arrays["hashes"] = index.hashes
    arrays["checksum"] = _checksum(arrays)
    replace_bytes(folder / NAME, save_arrays(arrays))


def load_index(folder: Path, shards: list[dict], features: Mapping[str, Mapping]) -> Index | None:
    """Read the index of a set, or return None when it is missing, damaged or not of these shards and features."""
    names = tensor_names(features)
    try:
        arrays = load_arrays((folder / NAME).read_bytes())
        checksum = arrays.pop("checksum")
        if not np.array_equal(checksum, _checksum(arrays)):
            return None
        if not np.array_equal(arrays["identity"], _identity(shards, names)):
            return None
        if not _fits(arrays, names, shards):
            return None
        keys, origins = (_parted(arrays[name], arrays[f"{name}.ends"]) for name in ("keys", "origins"))
        offsets = {name: arrays[f"offset.{name}"] for name in names}
        return Index(keys, arrays["shard"], arrays["member"], offsets, origins, arrays["hashes"])
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return None


def _fits(arrays: Mapping[str, np.ndarray], names: Sequence[str], shards: list[dict]) -> bool:
    """Whether the arrays have the shapes, types and ranges of an index of these shards, whoever wrote them."""
    count = sum(shard["samples"] for shard in shards)
    integers = {"member": np.int64, "keys.ends": np.int64, "origins.ends": np.int64, "shard": np.int32}
    integers |= {f"offset.{name}": np.int64 for name in names}
    if any(arrays[name].shape != (count,) or arrays[name].dtype != kind for name, kind in integers.items()):
        return False
    if arrays["hashes"].shape != (count, 32) or arrays["hashes"].dtype != np.uint8:
        return False
    if any(arrays[name].dtype != np.uint8 or arrays[name].ndim != 1 for name in ("keys", "origins")):
        return False
    sizes = np.array([shard["bytes"] for shard in shards], np.int64)
    within = [(arrays["shard"] >= 0).all() and (arrays["shard"] < len(shards)).all()]
    if count and within[0]:
        places = [arrays["member"], *(arrays[f"offset.{name}"] for name in names)]
        within += [(place >= 0).all() and (place < sizes[arrays["shard"]]).all() for place in places]
    return all(within) and all((np.diff(arrays[f"{name}.ends"], prepend=0) >= 0).all() for name in ("keys", "origins"))
