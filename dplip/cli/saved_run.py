"""A finished run of ``dplip train``, read from its folder, with its data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from dplip.data import Data, Table
    from dplip.models import Recipe


@dataclass(frozen=True)
class SavedRun:
    """A finished run: its report, its recipe, its trained model, and the data as the model was trained on them."""

    report: dict[str, Any]
    recipe: Recipe[Any]
    model: nn.Module
    data: Data | Table


def read_run(run: Path, data_dir: Path | None) -> SavedRun:
    """The run in a folder.

    Raises:
        ConfigurationError, CheckpointError: a file of it is missing, damaged, or fits no recipe or data set.
    """
    from dplip.data import load, load_table, read_schema
    from dplip.models import TabularPreset
    from dplip.records import read_report
    from dplip.runs.saved import recipe_of, trained_model

    report = read_report(run)
    recipe, name = recipe_of(run, report), str(report["run"]["data"])
    is_table = isinstance(recipe, TabularPreset)
    data = load_table(name, data_dir, schema=read_schema(run / "schema.json")) if is_table else load(name, data_dir)
    model = trained_model(run, report, lambda: recipe.model_for(data)).train()
    return SavedRun(report, recipe, model, recipe.prepared(data))
