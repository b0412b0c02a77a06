"""How much memory a training needs, counted before it starts."""
