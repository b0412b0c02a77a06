"""Recipes: what a published system (or the demo) fixes, as TOML data. Flags override them."""

import difflib
import tomllib
from pathlib import Path

from training import RunError
from training.settings import DEFAULTS

FOLDER = Path(__file__).resolve().parent.parent / "recipes"


def read_recipe(name: str, allowed: set[str], adapter: str | None = None) -> dict:
    """Return the `[train]` table of the recipe `name`, or of the TOML file of that name, with what its table
    `[adapter.SPEC]` adds for the adapter that is trained: `adapter`, or else the recipe's own.

    Raises RunError for an unknown recipe, with the nearest known name, and for a field that isn't in `allowed`.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        known = sorted(file.stem for file in FOLDER.glob("*.toml"))
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise RunError(f"unknown recipe {name!r}{hint} (known: {', '.join(known)})")
    try:
        whole = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise RunError(f"{path} is not TOML: {error}") from None
    table = whole.get("train", {})
    table |= whole.get("adapter", {}).get(adapter or table.get("adapter", DEFAULTS["adapter"]), {})
    unknown = sorted(set(table) - allowed)
    if unknown:
        raise RunError(f"{path} sets {', '.join(unknown)}, which train.py doesn't know")
    return table
