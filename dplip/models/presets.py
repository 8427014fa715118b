"""The recipes of all kinds of models, by data set, so that a run needs no other flag."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from dplip.errors import ConfigurationError
from dplip.models.l2 import PRESETS, Preset
from dplip.models.monotone import TabularPreset
from dplip.models.recipe import ImageRecipe, Recipe
from dplip.models.scattering import SCATTERINGS, ScatteringPreset
from dplip.models.sortnet import SORTNETS, SortNetRecipe
from dplip.models.windows import WINDOWS, WindowRecipe

MODELS: Mapping[str, Mapping[str, ImageRecipe]] = {
    "l2": PRESETS,
    "sortnet": SORTNETS,
    "windows": WINDOWS,
    "scattering": SCATTERINGS,
}
"""The recipes of each kind of model, by data set."""

KINDS: Mapping[str, Callable[..., Recipe[Any]]] = {
    "l2": Preset,
    "sortnet": SortNetRecipe,
    "windows": WindowRecipe,
    "scattering": ScatteringPreset,
    "monotone": TabularPreset,
}
"""The class of each kind's recipes, into which a report's settings are read back."""


def preset(name: str, model: str = "l2") -> ImageRecipe:
    """The recipe of a data set for a kind of model: ``"l2"``, ``"sortnet"``, ``"windows"`` or ``"scattering"``.

    Raises:
        ConfigurationError: there is none of that name; the nearest is named.
    """
    if model not in MODELS:
        raise ConfigurationError(f"model={model!r}: there is no such kind of model. Choose one of {list(MODELS)}.")
    recipes = MODELS[model]
    if name not in recipes:
        nearest = difflib.get_close_matches(name, recipes, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ConfigurationError(
            f"name={name!r}: there is no such preset for model={model!r}.{hint} Known: {list(recipes)}."
        )
    return recipes[name]
