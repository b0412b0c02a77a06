"""Encode media once with a frozen encoder: python precompute.py --help."""

import importlib
from pathlib import Path

from console import run
from precompute import PrecomputeError
from precompute.cli import main

DEMO = {"image": "scenes", "audio": "sounds", "video": "clips"}


def demo(modality: str, folder: Path, seed: int) -> Path:
    print(f"the demo's {DEMO[modality]}: {folder} (drawn now if they aren't there)")
    try:
        return importlib.import_module(f"demo.{DEMO[modality]}").make(folder, seed=seed)
    except ValueError as error:
        raise PrecomputeError(str(error)) from error


def recipe(name: str) -> dict:
    from training.recipe import load_recipe

    return load_recipe(name).precompute


if __name__ == "__main__":
    run(lambda: main(demo, recipe=recipe))
