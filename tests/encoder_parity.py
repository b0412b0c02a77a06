"""Comparing an encoder's features with those of its library's own forward pass."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from periscope.precompute.encoders import load_encoder
from periscope.shards.features import round_trip

KINDS = ("pooled", "patches", "layers")


TOLERANCE = 5e-4  # relative to the largest value, which is what float16 rounds to


def photo(size: tuple[int, int] = (53, 41)) -> Image.Image:
    generator = np.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def distance(stored: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference relative to the largest wanted value."""
    assert stored.shape == wanted.shape
    return ((stored.float() - wanted).abs().max() / wanted.abs().max()).item()


def given(folder: Path, kinds: tuple[str, ...], image: Image.Image | None = None) -> dict[str, torch.Tensor]:
    """The features of one picture as a shard would hold them."""
    encoder = load_encoder(str(folder), kinds=kinds)
    features = encoder.encode(encoder.preprocess(image or photo())[None], kinds)
    return {kind: round_trip(features[kind]) for kind in kinds}


def assert_parity(stored: torch.Tensor, wanted: torch.Tensor, **wrong: torch.Tensor) -> None:
    assert distance(stored, wanted) <= TOLERANCE
    for name, variant in wrong.items():
        miss = distance(stored, variant) if variant.shape == stored.shape else float("inf")
        assert miss >= 10 * TOLERANCE, f"{name} would pass as right: {miss:.2g}"
