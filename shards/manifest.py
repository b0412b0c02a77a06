"""manifest.json: the description of a feature set, validated when read."""

import json
from pathlib import Path

from periscope.atomic import replace_bytes
from periscope.errors import FeatureSetError
from periscope.shards.codecs import CODECS
from periscope.shards.features import KINDS
from periscope.shards.index import SHARD

NAME = "manifest.json"
FORMAT = 2
READS = (1, FORMAT)  # 1 knew float16 only, and said so once for all kinds


def load_manifest(folder: Path) -> dict:
    """Read and validate a set's manifest; an older format is converted to this one.

    Raises FeatureSetError when there is none or it is inconsistent.
    """
    path = Path(folder) / NAME
    if not path.is_file():
        unfinished = (Path(folder) / "progress.jsonl").is_file()
        raise FeatureSetError(
            f"{folder} is an unfinished feature set: run the same precompute.py command again to finish it"
            if unfinished
            else f"{folder} isn't a feature set (no {NAME}); make one with precompute.py"
        )
    try:
        manifest = json.loads(path.read_bytes())
        if manifest["format"] not in READS:
            known = " and ".join(map(str, READS))
            raise FeatureSetError(f"{path}: format {manifest['format']} is unknown here (this reads {known})")
        everywhere = manifest.pop("codec", "fp16")
        manifest["format"] = FORMAT
        for kind, entry in manifest["features"].items():
            shape = entry["shape"]
            if entry.setdefault("codec", everywhere) not in CODECS:
                known = ", ".join(CODECS)
                raise FeatureSetError(f"{path}: codec {entry['codec']!r} is unknown here (this reads {known})")
            if kind not in KINDS or entry["dtype"] != "float16" or not shape:
                raise FeatureSetError(f"{path}: features {kind!r} aren't of a known kind and dtype")
            if not all(isinstance(n, int) and n > 0 for n in shape):
                raise FeatureSetError(f"{path}: features {kind!r} have the impossible shape {shape}")
            if not all(isinstance(n, int) and n > 0 for n in (entry.get("views", 1), *entry.get("pool", ()))):
                raise FeatureSetError(f"{path}: features {kind!r} have impossible views or pool")
        for shard in manifest["shards"]:
            if not SHARD.fullmatch(shard["name"]):
                raise FeatureSetError(f"{path}: {shard['name']!r} isn't the name of a shard")
            int(shard["bytes"]), int(shard["samples"]), bytes.fromhex(shard["sha256"])
        manifest["encoder"]["fingerprint"], manifest["counts"]["media"]
    except FeatureSetError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FeatureSetError(f"{path} is damaged ({type(error).__name__}: {error})") from error
    return manifest


def save_manifest(folder: Path, manifest: dict) -> None:
    """Write a set's manifest atomically."""
    replace_bytes(Path(folder) / NAME, json.dumps(manifest, indent=1, ensure_ascii=False).encode() + b"\n")
