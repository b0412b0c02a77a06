"""Encode media once with a frozen encoder: python precompute.py --help."""

from pathlib import Path

from console import run
from precompute.cli import main


def demo(folder: Path, seed: int) -> Path:
    from demo import scenes

    return scenes.make(folder, seed=seed)


if __name__ == "__main__":
    run(lambda: main(demo))
