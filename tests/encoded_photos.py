"""Folders of small noise images with captions, and precompute.py on them."""

from pathlib import Path

import numpy as np
from PIL import Image

from periscope.precompute.cli import main
from periscope.shards.read import FeatureSet


def noise(path: Path, seed: int, size: tuple[int, int] = (48, 40)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def photos(folder: Path, count: int = 30, words: bool = True) -> Path:
    for number in range(count):
        noise(folder / f"{number:03d}.png", number)
        if words:
            (folder / f"{number:03d}.txt").write_text(f"caption {number}\nanother {number}\n")
    return folder


def run(data: Path, encoder: Path | str, out: Path, *more: str) -> FeatureSet:
    main(args=["--data", str(data), "--encoder", str(encoder), "--out", str(out), "--device", "cpu", *more])
    return FeatureSet(out)


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "timing.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
