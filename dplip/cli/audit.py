"""``dplip audit``: attacks on the promises of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dplip.cli.app import DataDir, app
from dplip.cli.saved_run import trained


@app.command()
def audit(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run of dplip train.")],
    data_dir: DataDir = None,
    canaries: Annotated[int, typer.Option(help="Of the attack on the noise.", min=100)] = 10_000,
    starts: Annotated[int, typer.Option(help="Of the search for long gradients.", min=1)] = 24,
    seed: Annotated[int, typer.Option(help="Of the attacks' starts and coins.", min=0)] = 0,
) -> None:
    """Attack a run's promises: its bounds, its noise, its ledger. Exit code 1: one of them did not survive."""
    from dplip.audit import audit_run, table
    from dplip.data import Data
    from dplip.models.presets import KINDS
    from dplip.records import read_report

    report = read_report(run)
    options: dict[str, Any] = {"canaries": canaries, "starts": starts, "seed": seed}
    if report.get("run", {}).get("model") == "monotone":
        from dplip.cli.tables import audit_table

        rows = audit_table(run, report, data_dir, **options)
    else:
        model, loaded = trained(run, data_dir)
        assert isinstance(loaded, Data)  # not a table, as the report says
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in report["run"]["preset"].items()}
        recipe = KINDS[report["run"].get("model", "l2")](**settings)
        rows = audit_run(run, report, model, recipe.loss(), loaded.train, loaded.input_shape, **options)
    typer.echo(table(rows))
    if not all(row.survived for row in rows):
        raise typer.Exit(1)
