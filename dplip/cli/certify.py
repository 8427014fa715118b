"""``dplip certify``: the certified accuracy of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dplip.cli.app import DataDir, app
from dplip.cli.saved_run import read_run
from dplip.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import nn


@app.command()
def certify(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run of dplip train.")],
    data_dir: DataDir = None,
    norm: Annotated[float, typer.Option(help="1, 2 or inf: the norm in which inputs move.")] = 2,
    points: Annotated[int, typer.Option(help="Steps of the table, from 0 to the largest radius.", min=1)] = 10,
    plot: Annotated[Path | None, typer.Option(help="Also draw the curve here (needs the extra 'plot').")] = None,
) -> None:
    """Certify a trained model on its test data: accuracy against radius."""
    from dplip.certificates import average_certified_radius, certified_curve, correct_radii

    model, test = certified_part(run, data_dir)
    radii = correct_radii(model, test, norm)
    at, accuracy = certified_curve(radii, points)
    for radius, value in zip(at, accuracy, strict=True):
        typer.echo(f"radius {radius:8.4f}  certified accuracy {value:.4f}")
    typer.echo(f"average certified radius {average_certified_radius(radii):.4f} (norm {norm:g})")
    if plot is not None:
        from dplip.certificates import certified_accuracy_plot

        certified_accuracy_plot(radii, plot, norm=norm)
        typer.echo(f"picture {plot}")


def certified_part(run: Path, data_dir: Path | None) -> tuple[nn.Module, Any]:
    """The model of a run and its test data; for a table, both begin at the scaled features."""
    from dplip.certificates import certify_monotonic
    from dplip.data import Table
    from dplip.models.table_trainer import in_public_ranges

    saved = read_run(run, data_dir)
    model, data = saved.model, saved.data
    if not isinstance(data, Table):
        return model, data.test
    if data.schema.regression:
        raise ConfigurationError(f"{run}: a regression has no class to certify; its report has its slopes' margin.")
    certify_monotonic(model, data.schema.directions, data.schema.features)
    return in_public_ranges(model, data.test)
