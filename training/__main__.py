"""Prints docs/recipes.md: python -m periscope.training > docs/recipes.md"""

from periscope.training.memory.recipe_table import page

if __name__ == "__main__":
    print(page(), end="")
