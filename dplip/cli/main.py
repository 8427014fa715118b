"""The entry point of the command line."""

from __future__ import annotations

import sys

import typer

from dplip.cli.app import app
from dplip.errors import DPLipError


def main() -> None:
    """Run the command line; an error of the library prints one sentence and exits with code 2."""
    try:
        app()
    except DPLipError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
