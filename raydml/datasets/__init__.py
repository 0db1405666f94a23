"""Public packages in; ready data sets out: fetched and drawn on the user's own machine, shipped with nothing."""

from raydml.datasets.build import RECIPES, build, recipe_named
from raydml.datasets.recipe import Recipe

__all__ = ["RECIPES", "Recipe", "build", "recipe_named"]
