"""Encode media once with a frozen encoder: python precompute.py --help."""

from pathlib import Path

from console import run
from precompute import PrecomputeError
from precompute.cli import main


def demo(folder: Path, seed: int) -> Path:
    from demo import scenes

    print(f"the demo's scenes: {folder} (drawn now if they aren't there)")
    try:
        return scenes.make(folder, seed=seed)
    except ValueError as error:
        raise PrecomputeError(str(error)) from error


if __name__ == "__main__":
    run(lambda: main(demo))
