"""The command line: ``dplip train``, ``dplip account``, ``dplip certify``, ``dplip audit``."""

from __future__ import annotations

import sys

import typer

from dplip.cli.app import app
from dplip.errors import DPLipError


def main() -> None:
    """Run the command line; an error of the library's is one sentence and exit code 2, never a traceback."""
    try:
        app()
    except DPLipError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
