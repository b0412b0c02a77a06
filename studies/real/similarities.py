"""How alike a picture is to those of each name in training, as vectors for `precompute.py --encoder vectors:`.

An adapter on an encoder's own features learns to read the styles that it is trained on, and other styles' features lie
beside them (docs/real.md). Here its features are a softmax over names instead, which other styles' pictures have too.
Tip-Adapter (Zhang et al. 2022, arXiv 2207.09519) classifies from few pictures by such similarities to a cache of them.
Everything is fitted to the training pictures alone; each of those is compared without itself.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from studies.real.assets import metadata
from studies.real.encode import encode, load_encoder

VIEWS = 12  # of each picture, whose mean is taken
SHRINKAGE = 1.0  # of the covariance towards its mean variance
TEMPERATURES = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1)


def view_features(pictures: Path) -> np.ndarray:
    """EfficientNet-Lite0's pooled features of a folder with metadata.jsonl, `(views, pictures, 1280)`: of each picture
    as it is, and turned by up to 12 degrees, moved, scaled, mirrored and recoloured.
    """
    model, transform = load_encoder()
    change = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomAffine(12, (0.06, 0.06), (0.8, 1.15), fill=255),
            v2.ColorJitter(0.2, 0.2, 0.2, 0.03),
        ]
    )
    found = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for row in metadata(pictures):
            picture = Image.open(pictures / row["file_name"]).convert("RGB")
            large = picture.resize((224, 224), Image.Resampling.BICUBIC)
            views = [picture, *(change(large) for _ in range(VIEWS - 1))]
            found.append(encode(model, torch.stack([transform(view) for view in views]))["pooled"].double().numpy())
    return np.stack(found, axis=1)


def similarities(views: np.ndarray, names: Sequence[str], seen: np.ndarray) -> tuple[np.ndarray, float]:
    """(`(pictures, names)`: each picture's softmax over the names of training, the temperature).

    views `(views, pictures, width)` · seen `(pictures,)` bool: those of training. Features are whitened by how views
    and pictures of one name differ, and a picture is compared with a name's mean by cosine; at the temperature taken,
    training pictures are likeliest to have their names.
    """
    known = sorted({name for name, shown in zip(names, seen, strict=True) if shown})
    label = np.array([known.index(name) if shown else -1 for name, shown in zip(names, seen, strict=True)])
    views = views - views[:, seen].mean((0, 1))
    apart = [views[:, label == index].reshape(-1, views.shape[-1]) for index in range(len(known))]
    whiten = _inverse_root(np.concatenate([one - one.mean(0) for one in apart]))
    features = _unit(views.mean(0) @ whiten)
    sums = np.stack([features[label == index].sum(0) for index in range(len(known))])
    cosines = features @ _unit(sums).T
    rows = np.flatnonzero(seen)
    others = _unit(sums[label[rows]] - features[rows] + 1e-12)  # without the picture itself
    cosines[rows, label[rows]] = (features[rows] * others).sum(1)
    likelihoods = {}
    for temperature in TEMPERATURES:
        shares = _softmax(cosines / temperature)
        likelihoods[temperature] = np.log(shares[rows, label[rows]] + 1e-12).mean()
    best = max(likelihoods, key=likelihoods.__getitem__)
    return _softmax(cosines / best), best


def write_vectors(pictures: Path, out: Path) -> int:
    """Write a folder for `precompute.py --encoder vectors:`, one file a picture under its name, and texts.jsonl; the
    vectors' width.
    """
    rows = metadata(pictures)
    seen = np.array([row["split"] == "train" for row in rows])
    shares, temperature = similarities(view_features(pictures), [row["text"] for row in rows], seen)
    shares *= np.sqrt(len(shares) / np.square(shares).sum())  # one vector's length is 1 in the mean
    texts = []
    for row, vector in zip(rows, shares, strict=True):
        name = Path(row["file_name"]).with_suffix(".npy")
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(out / name, vector.astype(np.float32))
        turns = [{"role": "assistant", "content": row["text"]}]
        texts.append({"id": str(name), "media": [str(name)], "turns": turns, "split": row["split"], "meta": {}})
    (out / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")
    print(f"{out}: similarities to {shares.shape[1]} names, temperature {temperature}")
    return shares.shape[1]


def _inverse_root(differences: np.ndarray) -> np.ndarray:
    """(n, width) of mean 0 -> the inverse root of their shrunken covariance, (width, width)."""
    covariance = differences.T @ differences / len(differences)
    width = len(covariance)
    values, vectors = np.linalg.eigh(covariance + SHRINKAGE * np.trace(covariance) / width * np.eye(width))
    return vectors @ np.diag(values**-0.5) @ vectors.T


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def _softmax(rows: np.ndarray) -> np.ndarray:
    powers = np.exp(rows - rows.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)
