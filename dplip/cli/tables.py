"""What ``dplip train`` and ``dplip certify`` do for tables, and ``dplip schema``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dplip.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import nn

    from dplip.data import Table
import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.utils.data import TensorDataset

from dplip.audit import Row, audit_run
from dplip.certificates import certified_accuracy, certify_monotonic, correct_radii
from dplip.cli.app import app
from dplip.data import Schema, Table, draft, load_table, read_schema, write_schema
from dplip.data.schema import parse_monotone
from dplip.data.tables import with_scaled_target
from dplip.models import TabularPreset, tabular_preset
from dplip.models.monotone import settings_of
from dplip.runtime.files import write_text
from dplip.runtime.mode import evaluation
from dplip.training import DPLipTrainer


@app.command()
def schema(
    file: Annotated[Path, typer.Argument(help="A table: CSV or Parquet.")],
    target: Annotated[str | None, typer.Option(help="The column to predict.")] = None,
    from_data: Annotated[bool, typer.Option(help="Take ranges and levels from the values: NOT PRIVATE.")] = False,
    out: Annotated[Path | None, typer.Option(help="The file to write. [NAME.schema.json]")] = None,
) -> None:
    """Draft the schema of a table: the public ranges, levels and directions of its columns, to fill in."""
    from dplip.cli.tables import draft_schema

    typer.echo(draft_schema(file, target, from_data, out))


TABLE_RADII = (0.0, 0.01, 0.05, 0.1)
"""The l1 radii of a table's certificates, in parts of the public ranges of its columns."""

MODEL = "monotone"
"""The kind of model by which a run's report is known to be that of a table."""


def train_table(
    data: str,
    data_dir: Path | None,
    table: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    epsilon: float,
    seed: int | None,
    out: Path | None,
    resume: bool = False,
    **trainer: Any,
) -> Path:
    """Train a monotone network on a table; returns the folder with its report, weights, ledger and schema.

    Args:
        table: the options ``target``, ``monotone``, ``schema`` and ``test``, None where they are not given.
        settings: fields of the preset to change, None where they are not given.
        resume: go on with an interrupted run in the folder, if there is one.
        trainer: further arguments of :class:`DPLipTrainer`.

    Raises:
        ConfigurationError: also where a private run would use ranges that were taken from the data.
    """
    directions = None if table["monotone"] is None else parse_monotone(table["monotone"])
    loaded = load_table(
        data, data_dir, schema=table["schema"], target=table["target"], monotone=directions, test=table["test"]
    )
    schema = loaded.schema
    require_public(schema, epsilon)
    size = trainer.get("public_size") or len(loaded.train)
    recipe = tabular_preset(loaded.name, math.isfinite(epsilon), schema.regression)
    recipe = dataclasses.replace(recipe, **{k: v for k, v in settings.items() if v is not None})
    recipe = dataclasses.replace(recipe, batch_size=min(recipe.batch_size, size))
    scaled = with_scaled_target(loaded, 1 / recipe.scale) if schema.regression else loaded
    if seed is not None:
        torch.manual_seed(seed)
    model = recipe.model(schema)
    loss, optimizer = recipe.loss(schema), recipe.optimizer(model)
    run = DPLipTrainer(
        model,
        loss=loss,
        optimizer=optimizer,
        train_dataset=scaled.train,
        eval_dataset=scaled.test,
        batch_size=recipe.batch_size,
        epochs=recipe.epochs,
        target_epsilon=epsilon,
        output_dir=Path("runs") / loaded.name if out is None else out,
        seed=seed,
        ema_decay=recipe.ema_decay,
        norm=1,
        **trainer,
    )
    run.scheduler = recipe.scheduler(optimizer, model, loss, run.steps)
    run.plan()
    run.fit(resume=resume)
    proof = certify_monotonic(model, schema.directions, schema.features)
    folder = run.save(
        {
            "run": {"data": data, "model": MODEL, "preset": dataclasses.asdict(recipe)},
            "monotonicity": {
                "margin": proof.margin,
                "directions": {c.name: c.monotone for c in schema.columns if c.monotone},
            },
            "certified": _certified(model, scaled),
            **_utility(run, loaded, recipe.scale),
        }
    ).parent
    write_schema(folder / "schema.json", schema)
    return folder


def require_public(schema: Schema, epsilon: float) -> None:
    """Refuse ranges that were taken from the data in a run that is to be private."""
    if schema.source != "public" and math.isfinite(epsilon):
        raise ConfigurationError(
            f"schema: source={schema.source!r}: its ranges and levels were taken from the data, which "
            f"epsilon={epsilon:g} does not cover. Replace them by"
            ' ranges that are known without the data, and write "source": "public"; '
            "or train without privacy (epsilon inf)."
        )


def trained_table(run: Path, report: Mapping[str, Any], data_dir: Path | None) -> tuple[nn.Module, Table]:
    """The model that a run trained on a table, from its scaled features on, and that table, scaled likewise."""
    _, model, loaded = _read(run, report, data_dir)
    schema = loaded.schema
    if schema.regression:
        raise ConfigurationError(f"{run}: a regression has no class to certify; its report has its slopes' margin.")
    certify_monotonic(model, schema.directions, schema.features)
    return model[1], dataclasses.replace(loaded, test=_inside(model, loaded.test))


def audit_table(run: Path, report: Mapping[str, Any], data_dir: Path | None, **options: Any) -> list[Row]:
    """Attack the promises of a run on a table, on its whole model and its raw rows; see :func:`audit_run`."""
    recipe, model, loaded = _read(run, report, data_dir)
    schema = loaded.schema
    scaled = with_scaled_target(loaded, 1 / recipe.scale) if schema.regression else loaded
    shape = tuple(scaled.train.tensors[0].shape[1:])
    return audit_run(run, report, model, recipe.loss(schema), scaled.train, shape, **options)


def _read(run: Path, report: Mapping[str, Any], data_dir: Path | None) -> tuple[TabularPreset, nn.Sequential, Table]:
    """How a run was made, the model that it trained, and its table."""
    try:
        recipe, data = settings_of(report["run"]["preset"]), str(report["run"]["data"])
        schema = read_schema(run / "schema.json")
        model = recipe.model(schema)
        model.load_state_dict(torch.load(run / "model.pt", weights_only=True))
    except ConfigurationError:
        raise
    except Exception as wrong:  # whatever a damaged folder makes the readers raise
        raise ConfigurationError(f"{run}: no trained table model can be read there ({type(wrong).__name__}).") from None
    return recipe, model, load_table(data, data_dir, schema=schema)


def draft_schema(path: Path, target: str | None, look: bool, out: Path | None) -> str:
    """Write the draft of a schema beside the table; returns what to tell the user."""
    text = draft(path, target, look)
    beside = path.with_name(f"{path.stem}.schema.json") if out is None else out
    if beside.exists():
        raise ConfigurationError(
            f"schema {beside}: it is there already, and is not overwritten: name another by --out."
        )
    write_text(beside, text)
    if look:
        return (
            f"{beside}: kinds, ranges and levels were TAKEN FROM THE VALUES of {path} (--from-data), so they are not "
            'public: no private run will use them while the file says "source": "observed".'
        )
    return (
        f"{beside}: only the columns' names were read, no value was looked at. Replace each null by a kind (numeric, "
        "boolean, categorical) and by a range (low, high) or levels that are known without the data."
    )


def _inside(model: Any, data: TensorDataset) -> TensorDataset:
    with evaluation(model), torch.no_grad():
        return TensorDataset(model[0](data.tensors[0]), data.tensors[1])


def _certified(model: Any, table: Table) -> dict[str, Any]:
    """Certified accuracy in l1, where a column moves by parts of its public range."""
    if table.schema.regression:
        return {"norm": 1, "radii": [], "accuracy": []}
    radii = correct_radii(model[1], _inside(model, table.test), norm=1)
    return {
        "norm": 1,
        "unit": "public range of a column",
        "radii": list(TABLE_RADII),
        "accuracy": certified_accuracy(radii, TABLE_RADII),
    }


def _utility(run: DPLipTrainer, table: Table, scale: float) -> dict[str, Any]:
    """The error of a regression in the units of its target, for values within the target's public range."""
    if not table.schema.regression:
        return {}
    half = (table.schema.target.high - table.schema.target.low) / 2
    error = run.evaluate()["mse"] * (half * scale) ** 2
    return {"utility": {"accuracy": None, "mse": error, "rmse": math.sqrt(error)}}
