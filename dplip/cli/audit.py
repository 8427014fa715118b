"""``dplip audit``: attacks on the promises of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dplip.cli.app import DataDir, app
from dplip.cli.saved_run import read_run

if TYPE_CHECKING:
    from dplip.audit import Row


@app.command()
def audit(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run of dplip train.")],
    data_dir: DataDir = None,
    canaries: Annotated[int, typer.Option(help="Of the attack on the noise.", min=100)] = 10_000,
    starts: Annotated[int, typer.Option(help="Of the search for long gradients.", min=1)] = 24,
    seed: Annotated[int, typer.Option(help="Of the attacks' starts and coins.", min=0)] = 0,
) -> None:
    """Attack a run's promises: its bounds, its noise, its ledger. Exit code 1: one of them did not survive.

    What was found is kept in DIR/audit.json, for dplip report.
    """
    from dplip.audit import table, write_audit

    rows = attacked(run, data_dir, canaries=canaries, starts=starts, seed=seed)
    typer.echo(table(rows))
    write_audit(run, rows)
    if not all(row.survived for row in rows):
        raise typer.Exit(1)


def attacked(run: Path, data_dir: Path | None, **options: Any) -> list[Row]:
    """Each promise of the run in a folder, and what an attack on it found."""
    from dplip.audit import audit_run

    saved = read_run(run, data_dir)
    loss, data = saved.recipe.loss_for(saved.data), saved.data
    return audit_run(run, saved.report, saved.model, loss, data.train, data.input_shape, **options)
