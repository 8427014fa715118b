"""The Typer application, and the options that its commands share."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

import dplip

app = typer.Typer(
    help="Differentially private training of Lipschitz networks, with certified robustness.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Epsilon = Annotated[float, typer.Option(help="The budget; inf trains without noise.")]
Delta = Annotated[float, typer.Option(help="The delta of every epsilon; well below 1 / examples.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder with the data set's published files (or set DPLIP_DATA).")]


class Neighboring(str, Enum):
    """The neighbouring relations."""

    add_remove = "add_remove"
    replace_one = "replace_one"


class AccountantName(str, Enum):
    """The accountants."""

    rdp = "rdp"
    prv = "prv"
    pld = "pld"


def _version(shown: bool) -> None:
    if shown:
        typer.echo(dplip.__version__)
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Differentially private training of Lipschitz networks, with certified robustness."""
