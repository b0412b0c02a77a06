"""Reading a recipe: names, and files that are damaged or of another form."""

import pytest

from periscope.errors import RecipeError
from periscope.recipes import load_recipe, recipe_names


def test_every_recipe_loads_by_its_name() -> None:
    names = recipe_names()
    assert len(names) > 20 and "llava-1.5" in names
    assert [load_recipe(name).name for name in names] == names


def test_a_misspelt_name_gets_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"unknown recipe 'lava-1\.5'; did you mean llava-1\.5"):
        load_recipe("lava-1.5")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[train", "is damaged"),
        (b"[train]\nlr = 1\xff\n", "is damaged"),
        (b"[trian]\nlr = 1\n", "has a table trian, and a recipe's are about, adapter"),
        (b"train = 3\n", r"sets train to a value; write it as a table, \[train\]"),
        (b"[adapter]\nmlp16 = 1\n", r"sets adapter to a value; write it as a table, \[adapter.NAME\]"),
        (b"[[modality]]\nlr = 1\n", r"sets modality to a value; write it as a table, \[modality.NAME\]"),
    ],
)
def test_a_file_that_is_no_recipe_is_one_sentence(content: bytes, said: str, tmp_path) -> None:
    path = tmp_path / "own.toml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=said):
        load_recipe(str(path))


def test_a_table_of_an_adapter_applies_to_that_adapter_alone(tmp_path) -> None:
    path = tmp_path / "own.toml"
    path.write_text("[train]\nlr = 1.0\nsteps = 2\n[adapter.mlp16]\nlr = 3.0\n")
    recipe = load_recipe(str(path))
    assert recipe.train_options({"lr", "steps"}, "mlp16", {}) == {"lr": 3.0, "steps": 2}
    assert recipe.train_options({"lr", "steps"}, "mlp8", {}) == {"lr": 1.0, "steps": 2}
    with pytest.raises(RecipeError, match=r"sets steps, which train\.py doesn't know"):
        recipe.train_options({"lr"}, "mlp8", {})
