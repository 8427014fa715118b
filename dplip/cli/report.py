"""``dplip report``: the report of a finished run, for a person to read and sign."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dplip.cli.app import app


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Folder of a finished run.")]) -> None:
    """Write DIR/report.html, one self-contained page, and DIR/model-card.md."""
    from dplip.reports import write_pages

    for page in write_pages(run):
        typer.echo(f"wrote {page}")
