"""A run on one page: what a recipe may say (schema), where it says it (locate), and how it is read (load)."""

from fox.recipe.load import LoadedRecipe, load_recipe
from fox.recipe.schema import Recipe

__all__ = ["LoadedRecipe", "Recipe", "load_recipe"]
