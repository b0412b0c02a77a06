"""Feature sets made without an encoder, for tests."""

import io
from pathlib import Path

import torch
from PIL import Image

from periscope.shards.features import encode
from periscope.shards.layout import settle_storage
from periscope.shards.read import FeatureSet
from periscope.shards.split import resolve_splits
from periscope.shards.write import SetWriter, make_key

ENCODER = {"name": "test", "library": "test", "class": "Test", "fingerprint": "f" * 64}
FEATURES = {
    "pooled": {"shape": [24], "dtype": "float16"},
    "patches": {"shape": [36, 32], "dtype": "float16", "grid": [6, 6]},
}


def given(number: int, kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number * 10 + len(kind))
    return torch.randn(FEATURES[kind]["shape"], generator=generator)


def digest(number: int) -> str:
    return f"{number * 7919 % 4096:03x}".ljust(64, "0")


def caption(key: str, words: str, split: str | None = None) -> dict:
    turns = [{"role": "assistant", "content": words}]
    return {"id": f"{key}-0", "media": [key], "turns": turns, "split": split, "meta": {}}


def make(
    folder: Path,
    numbers: range,
    features: dict | None = None,
    encoder: dict | None = None,
    views: int = 1,
    split: str | None = None,
    rejected: tuple[str, ...] = (),
    said: str = "words",
) -> FeatureSet:
    features = settle_storage(features or FEATURES)
    if views > 1:
        features = {kind: {**entry, "views": views} for kind, entry in features.items()}
    with SetWriter(folder, "image", encoder or ENCODER, features) as writer:
        with writer.shard() as shard:
            for n in numbers:
                stored = {}
                for kind, entry in features.items():
                    more = torch.stack([given(n + 1000 * view, kind) for view in range(views)])
                    stored |= encode(kind, more if views > 1 else more[0], entry)
                origin = f"folder/{n}.jpg"
                shard.add(make_key(origin), stored, {"modality": "image", "origin": origin, "sha256": digest(n)})
        hashes = {sample.key: sample.sha256 for sample in writer.samples()}
        rows = [caption(make_key(f"folder/{n}.jpg"), f"{said} {n}", split) for n in numbers]
        rows, heldout = resolve_splits(hashes, rows)
        jpeg = lambda keys: ((key, thumbnail(key)) for key in keys)  # noqa: E731
        left_out = [{"origin": origin, "reason": "truncated", "detail": ""} for origin in rejected]
        writer.finish(rows, heldout, jpeg, left_out)
    return FeatureSet(folder)


def thumbnail(key: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (128, 96), f"#{key[-6:]}").save(stream, "JPEG")
    return stream.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
