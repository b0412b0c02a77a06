"""Pictures of the real sets as vectors of EfficientNet-Lite, in the form that `precompute.py` reads as ready-made.

`pooled (1280,)` is what the classifier gets; `patches (49, 320)` is the last feature map, row by row.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.models import EfficientNet

from studies.real.assets import folder, root

Transform = Callable[[Image.Image], torch.Tensor]
BATCH = 32


def load_encoder(size: int = 0) -> tuple[EfficientNet, Transform]:
    """(EfficientNet-Lite `size` without its classifier, in eval mode; its transform of a picture)."""
    model = cast(EfficientNet, timm.create_model(f"local-dir:{folder(f'efficientnet-lite{size}')}", pretrained=True))
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    model.reset_classifier(0)
    return model.eval(), transform


@torch.no_grad()
def encode(model: EfficientNet, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """(batch, 3, height, width) -> {"pooled": (batch, 1280), "patches": (batch, rows * columns, 320)}, float32."""
    final, maps = model.forward_intermediates(pixels, indices=1, output_fmt="NCHW")
    return {"pooled": model.forward_head(final, pre_logits=True), "patches": maps[-1].flatten(2).transpose(1, 2)}


def metadata(pictures: Path) -> list[dict]:
    """The lines of a picture folder's metadata.jsonl."""
    return [json.loads(line) for line in (pictures / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def vectors_of(pictures: Path, model: EfficientNet, transform: Transform) -> dict[str, np.ndarray]:
    """Every picture of a folder, in the order of its metadata.jsonl, as `encode` has it: kind -> (pictures, ...)."""
    rows, parts = metadata(pictures), []
    for start in range(0, len(rows), BATCH):
        batch = [transform(Image.open(pictures / row["file_name"])) for row in rows[start : start + BATCH]]
        parts.append({kind: array.numpy() for kind, array in encode(model, torch.stack(batch)).items()})
    return {kind: np.concatenate([part[kind] for part in parts]) for kind in parts[0]}


def write_vectors(pictures: Path, name: str, size: int = 0) -> dict[str, Path]:
    """Encode a picture folder, unless that is done: kind -> a folder with vectors.npy and texts.jsonl in the cache."""
    places = {kind: root() / "vectors" / f"{name}-lite{size}-{kind}" for kind in ("pooled", "patches")}
    if all((place / "texts.jsonl").is_file() for place in places.values()):
        return places
    torch.set_num_threads(1)
    for kind, array in vectors_of(pictures, *load_encoder(size)).items():
        places[kind].mkdir(parents=True, exist_ok=True)
        np.save(places[kind] / "vectors.npy", array.astype(np.float16))
        lines = [json.dumps(text_line(number, row)) + "\n" for number, row in enumerate(metadata(pictures))]
        (places[kind] / "texts.jsonl").write_text("".join(lines), encoding="utf-8")
    return places


def text_line(number: int, row: dict) -> dict:
    """A line of texts.jsonl: the name of picture `number` as its caption."""
    turns = [{"role": "assistant", "content": row["text"]}]
    meta = {key: row[key] for key in ("file_name", "group", "style") if key in row}
    return {"media": [f"vectors.npy/{number:06d}"], "turns": turns, "split": row["split"], "meta": meta}
