"""manifest.json: the description of a feature set, validated when read.

Its last line holds the sha256 of all bytes before that line, so that a change of any byte of it shows.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from msgspec import UNSET, Meta, Struct, UnsetType

from periscope.atomic import replace_bytes
from periscope.checked import check_type, read_json
from periscope.errors import FeatureSetError
from periscope.shards.index import KEY, SHA256, SHARD
from periscope.shards.layout import CODECS, KINDS, stored_bytes
from periscope.shards.sharing.names import hub_set, is_hub_set

NAME = "manifest.json"
TEXTS, HELDOUT, REJECTED, THUMBNAILS = "texts.jsonl", "heldout.txt", "rejected.jsonl", "thumbnails"
FORMAT = 2
SHOWN = 5  # sets in a sentence
READS = (1, FORMAT)  # 1 knew float16 only, and said so once for all kinds
ADVICE = "copy it again, or run the same precompute.py command again"

Number = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Side = Annotated[int, Meta(ge=1, le=2**31)]
Digest = Annotated[str, Meta(pattern=rf"\A{SHA256.pattern}\Z")]
File = Annotated[str, Meta(pattern=rf"\A({TEXTS}|{HELDOUT}|{REJECTED}|{THUMBNAILS}/{KEY.pattern}\.jpg)\Z")]
Word = Annotated[str, Meta(max_length=4096)]


class Stored(Struct):
    """How one kind of features is stored, as the manifest and progress.jsonl say."""

    shape: Annotated[list[Side], Meta(min_length=1, max_length=2)]
    dtype: Literal["float16"]
    codec: Word
    grid: tuple[Side, Side] | UnsetType = UNSET
    pool: tuple[Side, Side] | UnsetType = UNSET
    views: Annotated[int, Meta(ge=1, le=4096)] | UnsetType = UNSET
    augmentation: Word | UnsetType = UNSET


class Shard(TypedDict):
    """One shard, as the manifest and progress.jsonl list it."""

    name: Annotated[str, Meta(pattern=rf"\A{SHARD.pattern}\Z")]
    bytes: Number
    sha256: Digest
    samples: Number


class Reject(TypedDict):
    """A medium that was left out, as progress.jsonl and, without its hash, rejected.jsonl list it."""

    origin: str
    reason: str
    detail: str
    sha256: NotRequired[str]


class _Counts(Struct):
    media: Number
    heldout: Number
    texts: Number
    rejected: Number


class _Encoder(Struct):
    name: Word
    fingerprint: Word
    library: Word | UnsetType = UNSET
    id: Word | UnsetType | None = UNSET
    choices: dict[str, Any] | UnsetType = UNSET
    preprocessing: dict[str, Any] | UnsetType = UNSET
    layer: Any = None


class _Manifest(Struct):
    format: int
    modality: Annotated[str, Meta(pattern=r"\A[a-z_]{1,40}\Z")]
    encoder: _Encoder
    features: Annotated[dict[Literal[KINDS], Stored], Meta(min_length=1)]  # type: ignore[valid-type]
    counts: _Counts
    shards: list[Shard]
    name: Word = ""
    files: dict[File, Digest] | UnsetType = UNSET  # sha256 of those beside the shards; earlier versions had none


def _meant(folder: Path) -> str:
    """What a folder that is no set may be instead, or what to do."""
    if is_hub_set(folder):
        return f"; fetch it first: periscope features fetch {hub_set(folder)}"
    if any((folder / name).is_file() for name in ("adapter.json", "config.toml")):
        return "; it is a run or an adapter, which periscope push shares"
    if inside := sorted(str(file.parent) for file in Path(folder).glob(f"*/{NAME}")):
        more = f" and {len(inside) - SHOWN} more" * (len(inside) > SHOWN)
        return f"; it holds {', '.join(inside[:SHOWN])}{more}: name {'one' if inside[1:] else 'that'}"
    made = Path("features", Path(folder).resolve().name)
    named_so = f", but {made} is one" if (made / NAME).is_file() else ""
    return f"{named_so}; make one with precompute.py"


def load_manifest(folder: Path) -> dict[str, Any]:
    """Read and validate a set's manifest; an older format is converted to this one.

    Raises FeatureSetError when there is none or it is inconsistent.
    """
    folder = Path(folder)
    path = folder / NAME
    if not path.is_file():
        unfinished = (folder / "progress.jsonl").is_file()
        raise FeatureSetError(
            f"{folder} is an unfinished feature set: run the same precompute.py command again to finish it"
            if unfinished
            else f"{folder} isn't a feature set (no {NAME}){_meant(folder)}"
        )
    manifest = read_json(path, FeatureSetError, ADVICE)
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if version not in READS or isinstance(version, bool):
        known = " and ".join(map(str, READS))
        raise FeatureSetError(f"{path}: format {str(version)[:40]} is unknown here (this reads {known})")
    _complete(manifest, path.parent.name)
    check_type(manifest, _Manifest, str(path), FeatureSetError, ADVICE)
    for entry in manifest["features"].values():
        if entry["codec"] not in CODECS:
            known = ", ".join(CODECS)
            raise FeatureSetError(f"{path}: codec {entry['codec'][:40]!r} is unknown here (this reads {known})")
    each = sum(map(stored_bytes, manifest["features"].values()))
    for shard in manifest["shards"]:
        if shard["samples"] * each > shard["bytes"]:
            raise FeatureSetError(
                f"{path}: {shard['samples']:,} media of these shapes don't fit into the {shard['bytes']:,} bytes of "
                f"{shard['name']}; {ADVICE}"
            )
    return manifest


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """What differs between two encoders as manifests describe them: "weights", "layer, preprocessing (pooled)", ...

    Descriptions by earlier versions lack some parts, which aren't compared then.
    """
    known = [part for part in ("class", "weights", "layer", "choices") if all(each.get(part) for each in (one, other))]
    found = [part for part in known if one[part] != other[part]]
    ours, theirs = (dict(each.get("preprocessing") or {}) for each in (one, other))
    keys = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
    return ", ".join([*found, f"preprocessing ({', '.join(keys)})"] if keys else found) or "weights or config"


def refuse_taken(out: Path) -> None:
    """Raise FeatureSetError where `out` is a finished set."""
    if (Path(out) / NAME).is_file():
        raise FeatureSetError(f"{out} is a feature set already; name a folder that doesn't exist yet")


def _complete(manifest: dict[str, Any], name: str) -> None:
    """Add what earlier versions didn't write, where the rest is of the right type."""
    everywhere = manifest.pop("codec", "fp16")
    manifest["format"] = FORMAT
    manifest.setdefault("name", name)
    if isinstance(manifest.get("counts"), dict):
        manifest["counts"].setdefault("rejected", 0)
    if isinstance(features := manifest.get("features"), dict):
        for entry in features.values():
            if isinstance(entry, dict):
                entry.setdefault("codec", everywhere)


def save_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write a set's manifest atomically, with its own sha256 in the last line."""
    described = {name: value for name, value in manifest.items() if name != "sha256"}
    text = json.dumps(described, indent=1).encode()
    replace_bytes(Path(folder) / NAME, _sealed(text.removesuffix(b"\n}") + b",\n"))


def is_sealed(folder: Path) -> bool:
    """Whether a set's manifest is byte for byte as it was written."""
    data = (Path(folder) / NAME).read_bytes()
    return data == _sealed(data[: data.rfind(b"\n", 0, -3) + 1])


def _sealed(start: bytes) -> bytes:
    return start + f' "sha256": "{hashlib.sha256(start).hexdigest()}"\n}}\n'.encode()
