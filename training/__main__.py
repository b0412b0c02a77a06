"""The table of recipes: python -m training > docs/recipes.md"""

from training.table import page

if __name__ == "__main__":
    print(page(), end="")
