"""The files of a finished run, and its model built again; nothing in the folder is executed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from dplip.data import Schema, read_schema
from dplip.errors import ConfigurationError, first_line
from dplip.models.monotone import TabularPreset
from dplip.models.presets import KINDS
from dplip.models.recipe import ImageRecipe, Recipe
from dplip.records import read_report
from dplip.records.weights import read_weights

AGAIN = "Go on with the run by dplip train --resume with its flags, which spends nothing once all its steps are taken."


def read_run_report(folder: Path) -> dict[str, Any]:
    """The report of a run that this version can read.

    Raises:
        ConfigurationError: there is none, or it was written by a version of dplip that put other things into it.
    """
    report = read_report(folder)
    if "input" not in report or "provenance" not in report:
        raise ConfigurationError(
            f"{folder / 'report.json'}: dplip={report['versions']['dplip']!r}: that version did not write what the "
            f"model is built from. {AGAIN}"
        )
    return report


def recipe_of(folder: Path, report: Mapping[str, Any]) -> Recipe[Any]:
    """The recipe that a run of ``dplip train`` was made by.

    Raises:
        ConfigurationError: the report names none.
    """
    try:
        run = report["run"]
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in run["preset"].items()}
        return KINDS[run.get("model", "l2")](**settings)
    except (AttributeError, KeyError, TypeError) as wrong:
        raise ConfigurationError(
            f"{folder}: its report does not say how to build the model ({wrong}). Give a folder that dplip train "
            "wrote, or the function that makes the model: dplip.load_run(folder, model=function)."
        ) from None


def schema_of(folder: Path, report: Mapping[str, Any]) -> Schema | None:
    """The schema of the table that the run was on; None: it was on something else.

    The folder of a run on images may hold the schema of an earlier run there.
    """
    path = folder / "schema.json"
    return read_schema(path) if "monotonicity" in report and path.exists() else None


def new_model(folder: Path, report: Mapping[str, Any], schema: Schema | None) -> nn.Module:
    """A new model by the recipe of a run, without its data."""
    recipe = recipe_of(folder, report)
    if isinstance(recipe, TabularPreset):
        if schema is None:
            raise ConfigurationError(f"{folder / 'schema.json'}: there is none, and the model is built by it. {AGAIN}")
        return recipe.model(schema)
    try:
        shape, classes = tuple(map(int, report["input"]["shape"])), int(report["run"]["classes"])
    except (KeyError, TypeError, ValueError) as wrong:
        raise ConfigurationError(
            f"{folder / 'report.json'}: no shape of its inputs, or no number of classes ({wrong!r}). {AGAIN}"
        ) from None
    assert isinstance(recipe, ImageRecipe)
    return recipe.model(shape, classes)


def trained_model(folder: Path, report: Mapping[str, Any], make: Callable[[], nn.Module]) -> nn.Module:
    """A model with the weights of a run, in evaluation mode.

    Raises:
        CheckpointError: the weights are missing, damaged, or those of another report.
        ConfigurationError: they are not weights of this model.
    """
    model = make()
    if not isinstance(model, nn.Module):
        raise ConfigurationError(
            f"model: it made a {type(model).__name__}. Give a function that returns a torch module."
        )
    weights = read_weights(folder, report.get("provenance", {}).get("weights"))
    try:
        model.load_state_dict(weights)
    except (RuntimeError, KeyError, TypeError, AttributeError) as wrong:
        detail = "; ".join(line.strip() for line in str(wrong).splitlines()[1:3]) or first_line(wrong)
        raise ConfigurationError(
            f"{folder}: its weights are not those of this model ({detail}). Build the model as the run did."
        ) from None
    return model.eval()
