"""A finished run, read from its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dplip.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import nn

    from dplip.data import Data, Table
    from dplip.models import Recipe


@dataclass(frozen=True)
class SavedRun:
    """A finished run: its report, its recipe, its trained model, and the data as the model was trained on them."""

    report: dict[str, Any]
    recipe: Recipe[Any]
    model: nn.Sequential
    data: Data | Table


def read_run(run: Path, data_dir: Path | None) -> SavedRun:
    """The run in a folder.

    Raises:
        ConfigurationError: a file of it is missing, damaged, or fits no recipe or data set.
    """
    import torch

    from dplip.data import load, load_table, read_schema
    from dplip.models.presets import KINDS
    from dplip.records import read_report

    report = read_report(run)
    try:
        kind, name = report["run"].get("model", "l2"), str(report["run"]["data"])
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in report["run"]["preset"].items()}
        recipe = KINDS[kind](**settings)
    except (AttributeError, KeyError, TypeError) as wrong:
        raise ConfigurationError(
            f"{run}: its report does not say how to build the model ({wrong}). Give a folder that dplip train wrote."
        ) from None
    is_table = kind == "monotone"
    data = load_table(name, data_dir, schema=read_schema(run / "schema.json")) if is_table else load(name, data_dir)
    try:
        model = recipe.model_for(data)
        model.load_state_dict(torch.load(run / "model.pt", weights_only=True))
    except Exception as wrong:  # whatever a damaged file makes the reader raise
        raise ConfigurationError(
            f"{run / 'model.pt'}: no weights of this model can be read there ({type(wrong).__name__}). "
            "Restore it, without spending anything, by dplip train --resume with the flags of the run."
        ) from None
    return SavedRun(report, recipe, model, recipe.prepared(data))
