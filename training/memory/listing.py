"""The recipes for the terminal: `train.py --list`. Imports no torch, which takes seconds."""

from periscope.errors import RunError
from periscope.recipes import Recipe, load_recipe, recipe_names
from periscope.training.config import TrainConfig, config_from


def config_of(recipe: Recipe) -> TrainConfig:
    """The training configuration that a recipe describes."""
    return config_from(recipe.train, str(recipe.path))


def lm_of(recipe: Recipe, config: TrainConfig) -> str:
    """The recipe's language model. Raises RunError when it names none."""
    if config.lm is None:
        raise RunError(f"{recipe.path} names no language model; set lm in its [train] table")
    return config.lm


def listing() -> str:
    """A block of two lines for each recipe."""
    blocks = []
    for name in recipe_names():
        recipe = load_recipe(name)
        config = config_of(recipe)
        facts = [recipe.precompute.get("encoder", "demo"), lm_of(recipe, config), config.adapter]
        if recipe.full:
            facts.append(f"{recipe.full['trained']:,} trained")
        title = recipe.about.get("title", "the demo's own")
        blocks.append(f"{name:<18} {title}\n{'':<18} {', '.join(facts)}")
    return "\n".join(blocks)
