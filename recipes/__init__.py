"""Recipes: what a published system (or the demo) fixes, as TOML data. Flags override them."""

import difflib
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from periscope.errors import RecipeError

FOLDER = Path(__file__).resolve().parent
TABLES = {"about", "precompute", "train", "adapter", "modality", "full"}


@dataclass(frozen=True)
class Recipe:
    """One file of recipes/. `about`: paper, data, scores, what is doubtful · `precompute` and `train`: fields of those
    scripts' flags · `adapter`: SPEC -> fields that go with this adapter · `modality`: "audio" -> fields that go with
    this modality's adapter, where several are trained at once · `full`: the encoder's true shape, so that what a
    training needs can be counted without it.
    """

    path: Path
    about: dict
    precompute: dict
    train: dict
    adapter: dict
    modality: dict
    full: dict

    @property
    def name(self) -> str:
        return self.path.stem

    def train_options(self, allowed: Collection[str], adapter: str, renamed: Mapping[str, str]) -> dict:
        """The `[train]` table with what `[adapter.SPEC]` adds for `adapter` (unless the recipe has its own). `renamed`:
        older name of an option -> its name now.

        Raises RecipeError for an option that isn't in `allowed`.
        """
        table = _renamed(self.train | self.adapter.get(adapter, {}), renamed)
        if unknown := sorted(set(table) - set(allowed)):
            raise RecipeError(f"{self.path} sets {', '.join(unknown)}, which train.py doesn't know")
        return table

    def modality_options(self, allowed: Collection[str], renamed: Mapping[str, str]) -> dict[str, dict]:
        """The `[modality.*]` tables. Raises RecipeError for an option that isn't in `allowed`."""
        tables = {modality: _renamed(table, renamed) for modality, table in self.modality.items()}
        for modality, table in tables.items():
            if unknown := sorted(set(table) - set(allowed)):
                raise RecipeError(
                    f"{self.path} sets {', '.join(unknown)} for {modality}, which can't be set for one modality"
                )
        return tables


def _renamed(table: Mapping, renamed: Mapping[str, str]) -> dict:
    return {renamed.get(name, name): value for name, value in table.items()}


def recipe_names() -> list[str]:
    """The recipes there are."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_recipe(name: str) -> Recipe:
    """Read the recipe `name`, or the TOML file of that name.

    Raises RecipeError for an unknown recipe, with the nearest known name, and for a file that isn't one.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        near = difflib.get_close_matches(name, recipe_names(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise RecipeError(f"unknown recipe {name!r}{hint} (known: {', '.join(recipe_names())})")
    try:
        whole = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is not TOML: {error}") from None
    if strange := sorted(set(whole) - TABLES):
        raise RecipeError(f"{path} has a table {strange[0]}, and a recipe's are {', '.join(sorted(TABLES))}")
    return Recipe(path, **{table: whole.get(table, {}) for table in TABLES})
