"""``dplip predict``: predictions of a finished run, each with its certified radius."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dplip.cli.app import app
from dplip.errors import ConfigurationError

if TYPE_CHECKING:
    from dplip.runs import Predictions

SUFFIXES = (".csv", ".jsonl")


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run of dplip train.")],
    input: Annotated[Path, typer.Option(help="CSV, Parquet, .npy, an image, or a folder of images.")],
    output: Annotated[Path | None, typer.Option(help="A new file, .csv or .jsonl. [shown as CSV]")] = None,
    norm: Annotated[float | None, typer.Option(help="1, 2 or inf: the norm of the radii. [the report's]")] = None,
) -> None:
    """Predict, with a certified radius for every prediction: within it, no change of the input changes the label."""
    from dplip.runs import load_run
    from dplip.runs.inputs import read_inputs
    from dplip.runtime.files import write_text

    if output is not None and output.suffix.lower() not in SUFFIXES:
        raise ConfigurationError(f"--output {output}: name a file that ends in {' or '.join(SUFFIXES)}.")
    if output is not None and output.exists():
        raise ConfigurationError(f"--output {output}: it is there already, and is not overwritten. Name a new file.")
    loaded = load_run(run)
    names, x = read_inputs(input, loaded)
    found = loaded.predict(x, norm)
    text = as_lines(names, found) if output is not None and output.suffix.lower() == ".jsonl" else as_csv(names, found)
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_text(output, text)
        typer.echo(f"{len(found)} predictions in {output}", err=True)
    if found.why is not None:
        typer.echo(f"no certified radius: {found.why}", err=True)
    else:
        typer.echo(f"radius: in the l{found.norm:g} norm; a radius of 1 is {found.unit}", err=True)


def as_csv(names: list[str], found: Predictions) -> str:
    """A line for each prediction, under a line of names; a radius that is not there is left blank."""
    rows = list(found)
    scores = len(rows[0]["scores"]) if rows else 0
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["input", "label", "radius", *(f"score {k}" for k in range(scores))])
    for name, row in zip(names, rows, strict=True):
        writer.writerow([name, row["label"], "" if row["radius"] is None else row["radius"], *row["scores"]])
    return text.getvalue()


def as_lines(names: list[str], found: Predictions) -> str:
    """A JSON object in a line for each prediction; an infinite radius is the string ``"inf"``."""
    rows = ({"input": name, **row} for name, row in zip(names, found, strict=True))
    return "".join(json.dumps({key: _finite(value) for key, value in row.items()}) + "\n" for row in rows)


def _finite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
