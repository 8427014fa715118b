"""Recipes: models and how they are trained, for each data set."""

from dplip.models.l2 import Preset
from dplip.models.monotone import TabularPreset, tabular_preset
from dplip.models.presets import preset
from dplip.models.recipe import ImageRecipe, Recipe
from dplip.models.scattering import ScatteringPreset

__all__ = ["ImageRecipe", "Preset", "Recipe", "ScatteringPreset", "TabularPreset", "preset", "tabular_preset"]
