"""Folders that load without graphprune: their modelling file, and the recipe in their config that it follows."""

from graphprune.checkpoint.remote.recipe import KEY, Recipe, find_recipe
from graphprune.checkpoint.remote.write import MODELING, write_remote

__all__ = ["KEY", "MODELING", "Recipe", "find_recipe", "write_remote"]
