"""``dplip schema``, and the options of ``dplip train`` for tables."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dplip.cli.app import app
from dplip.errors import ConfigurationError

if TYPE_CHECKING:
    from dplip.data import Schema, Table
    from dplip.models import TabularPreset


@app.command()
def schema(
    file: Annotated[Path, typer.Argument(help="A table: CSV or Parquet.")],
    target: Annotated[str | None, typer.Option(help="The column to predict.")] = None,
    from_data: Annotated[bool, typer.Option(help="Take ranges and levels from the values: NOT PRIVATE.")] = False,
    out: Annotated[Path | None, typer.Option(help="The file to write. [NAME.schema.json]")] = None,
) -> None:
    """Draft the schema of a table: the public ranges, levels and directions of its columns, to fill in."""
    from dplip.data import draft
    from dplip.runtime.files import write_text

    text = draft(file, target, from_data)
    beside = file.with_name(f"{file.stem}.schema.json") if out is None else out
    if beside.exists():
        raise ConfigurationError(
            f"schema {beside}: it is there already, and is not overwritten. Write what is missing into it (as in "
            f'"target": "{target or "NAME"}"), remove it, or name another by --out.'
        )
    write_text(beside, text)
    if from_data:
        typer.echo(
            f"{beside}: kinds, ranges and levels were TAKEN FROM THE VALUES of {file} (--from-data), so they are not "
            'public: no private run will use them while the file says "source": "observed".'
        )
    else:
        typer.echo(
            f"{beside}: only the columns' names were read, no value was looked at. Replace each null by a kind "
            "(numeric, boolean, categorical) and by a range (low, high) or levels that are known without the data."
        )


def table_and_recipe(
    data: str,
    data_dir: Path | None,
    epsilon: float,
    *,
    target: str | None,
    monotone: str | None,
    schema: Path | None,
    test: Path | None,
) -> tuple[Table, TabularPreset]:
    """The table that the options mean, and the recipe for it.

    Raises:
        ConfigurationError: also where a private run would use ranges that were taken from the data.
    """
    from dplip.data import load_table
    from dplip.data.schema import parse_monotone
    from dplip.models import tabular_preset

    directions = None if monotone is None else parse_monotone(monotone)
    table = load_table(data, data_dir, schema=schema, target=target, monotone=directions, test=test)
    require_public(table.schema, epsilon)
    return table, tabular_preset(table.name, math.isfinite(epsilon), table.schema.regression)


def require_public(schema: Schema, epsilon: float) -> None:
    """Refuse ranges that were taken from the data in a run that is to be private."""
    if schema.source != "public" and math.isfinite(epsilon):
        raise ConfigurationError(
            f"schema: source={schema.source!r}: its ranges and levels were taken from the data, which "
            f"epsilon={epsilon:g} does not cover. Replace them by"
            ' ranges that are known without the data, and write "source": "public"; '
            "or train without privacy (epsilon inf)."
        )
