"""The model of a finished run, read from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dplip.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import nn

    from dplip.data import Data, Table


def trained(run: Path, data_dir: Path | None) -> tuple[nn.Module, Data | Table]:
    """The model that a run trained, and its data."""
    import torch

    from dplip.data import load
    from dplip.models.presets import KINDS
    from dplip.records import read_report

    report = read_report(run)
    if report.get("run", {}).get("model") == "monotone":
        from dplip.cli.tables import trained_table

        return trained_table(run, report, data_dir)
    try:
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in report["run"]["preset"].items()}
        recipe, name = KINDS[report["run"].get("model", "l2")](**settings), str(report["run"]["data"])
    except (AttributeError, KeyError, TypeError) as wrong:
        raise ConfigurationError(
            f"{run}: its report does not say how to build the model ({wrong}). Give a folder that dplip train wrote."
        ) from None
    loaded = load(name, data_dir)
    model = recipe.model(loaded.input_shape, loaded.num_classes)
    try:
        model.load_state_dict(torch.load(run / "model.pt", weights_only=True))
    except Exception as wrong:  # whatever a damaged file makes the reader raise
        raise ConfigurationError(
            f"{run / 'model.pt'}: no weights of this model can be read there ({type(wrong).__name__}). "
            "Restore it, without spending anything, by dplip train --resume with the flags of the run."
        ) from None
    return model, loaded
