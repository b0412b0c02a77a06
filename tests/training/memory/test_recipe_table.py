"""docs/recipes.md: the recipes in full size, as the code counts them."""

import re
from pathlib import Path

import pytest

from periscope.recipes import load_recipe, recipe_names
from periscope.training.memory.recipe_table import page

ROOT = Path(__file__).parents[3]
SIZES = re.compile(r"(\d+(?:\.\d+)?) (kB|MB|GB)")


def without_memory(text: str) -> str:
    """The page without the figures that follow transformers' version: it changes what a model keeps."""
    head, _, rest = text.partition("## Memory in full size")
    return head + "\n".join(line for line in rest.splitlines() if not SIZES.search(line) or "24 GB" in line)


def memory_rows(text: str) -> list[float]:
    """Every size in the table of memory, in bytes."""
    table = text.partition("## Memory in full size")[2]
    units = {"kB": 1e3, "MB": 1e6, "GB": 1e9}
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [float(number) * units[unit] for line in lines for number, unit in SIZES.findall(line)]


def test_the_page_of_recipes_is_made_by_its_script():
    made = page()
    written = (ROOT / "docs/recipes.md").read_text()
    assert without_memory(written) == without_memory(made), "run python -m periscope.training > docs/recipes.md"
    pairs = list(zip(memory_rows(written), memory_rows(made), strict=True))
    assert pairs and all(ours == pytest.approx(theirs, rel=0.25) for ours, theirs in pairs)
    counted = {recipe.name: recipe.full for name in recipe_names() if (recipe := load_recipe(name)).full}
    assert all(f"| {name} | " in made for name in counted)
    for name, full in counted.items():
        (row,) = [line for line in made.splitlines() if line.startswith(f"| [{name}](")]
        assert f"| {full['trained']:,} |" in row, f"set trained in the [full] table of recipes/{name}.toml"
    assert "doesn't fit" not in made
