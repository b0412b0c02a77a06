"""Recipes: the settings of a published system or of the demo, as TOML files. Flags override them."""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from periscope.checked import read_toml
from periscope.errors import RecipeError

FOLDER = Path(__file__).resolve().parent
NESTED = {"adapter", "modality"}
ASPECTS = {  # of a recipe, in the order of docs/recipes.md: name -> as people read it
    "language_model": "Language model",
    "data_rule": "Data rule",
    "prompt": "Prompt",
    "image_processing": "Image processing",
    "encoder_layer": "Encoder layer",
    "projector": "Projector",
    "loss": "Loss",
    "optimizer": "Optimizer",
    "schedule": "Schedule",
    "precision": "Precision",
    "decoding": "Decoding",
    "evaluation": "Evaluation",
}
TABLES = {"about", "precompute", "train", "adapter", "modality", "full"}


@dataclass(frozen=True)
class Recipe:
    """One TOML file, its tables as dicts.

    - `about`: title, paper, data, tasks, scores of the paper, and `differs`: aspect (see `ASPECTS`) -> how the recipe
      deviates there from the paper or its code, or what isn't stated in them. The other aspects are as published.
    - `precompute`, `train`: settings of these scripts, by the names of their flags.
    - `adapter`: adapter spec -> settings that apply with this adapter only.
    - `modality`: "audio" -> settings of this modality's adapter, where several are trained at once.
    - `full`: the shape of the encoder's features (tokens, width, grid), to compute sizes without loading the encoder,
      and how many parameters are trained.
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
    """Names of the recipes that come with Periscope, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_recipe(name: str) -> Recipe:
    """Read the recipe called `name`, or the file `name` if it ends in .toml.

    Raises RecipeError for an unknown recipe (naming the nearest known one), and for a file that isn't a recipe.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        near = difflib.get_close_matches(name, recipe_names(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise RecipeError(f"unknown recipe {name!r}{hint} (known: {', '.join(recipe_names())})")
    whole = read_toml(path, RecipeError, "mend it, or copy it again")
    if strange := sorted(set(whole) - TABLES):
        raise RecipeError(f"{path} has a table {strange[0]}, and a recipe's are {', '.join(sorted(TABLES))}")
    for table, found in whole.items():
        nested = found.values() if table in NESTED and isinstance(found, dict) else ()
        if not isinstance(found, dict) or not all(isinstance(part, dict) for part in nested):
            form = f"[{table}.NAME]" if table in NESTED else f"[{table}]"
            raise RecipeError(f"{path} sets {table} to a value; write it as a table, {form}")
    return Recipe(path, **{table: whole.get(table, {}) for table in TABLES})
