"""``dplip train``: a private model from a data set and a budget."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dplip.cli.app import AccountantName, DataDir, Delta, Epsilon, Neighboring, app
from dplip.errors import ConfigurationError, LedgerError
from dplip.runtime.files import write_text

if TYPE_CHECKING:
    from dplip.data import Data
    from dplip.models import ImageRecipe, Recipe


class ModelName(str, Enum):
    """The kinds of model."""

    l2 = "l2"
    sortnet = "sortnet"
    windows = "windows"
    scattering = "scattering"


class Goal(str, Enum):
    """The goals that a kind of model may be chosen by."""

    certified = "certified"
    accuracy = "accuracy"


KIND_OF = {None: ModelName.l2, Goal.certified: ModelName.l2, Goal.accuracy: ModelName.scattering}


@app.command()
def train(
    data: Annotated[
        str, typer.Option(help="digits, mnist, fashion-mnist, cifar10; adult, compas, ...; a FILE.")
    ] = "digits",
    data_dir: DataDir = None,
    model: Annotated[
        ModelName | None,
        typer.Option(help="l2: orthogonal; sortnet: l-infinity distances; windows: maxima; scattering. [l2]"),
    ] = None,
    goal: Annotated[
        Goal | None, typer.Option("--preset", help="certified: --model l2; accuracy: --model scattering.")
    ] = None,
    norm: Annotated[float | None, typer.Option(help="Norm of the report's certificates. [the model's]")] = None,
    epsilon: Epsilon = 8.0,
    delta: Delta = 1e-5,
    seed: Annotated[int | None, typer.Option(help="Repeatable, and so not private: for tests.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the report, weights and ledger. [runs/DATA]")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data. [the preset's]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Expected Poisson batch. [the preset's]")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate. [the preset's]")] = None,
    accountant: Annotated[AccountantName, typer.Option(help="How steps are composed.")] = AccountantName.rdp,
    max_physical_batch_size: Annotated[int | None, typer.Option(help="Most examples at once in memory.")] = None,
    neighboring: Annotated[Neighboring, typer.Option(help="The neighbouring relation.")] = Neighboring.add_remove,
    public_size: Annotated[int | None, typer.Option(help="Size of the data, if its length is private.")] = None,
    progress: Annotated[bool, typer.Option(help="Show the plan and a progress bar.")] = True,
    target: Annotated[str | None, typer.Option(help="Tables: the column to predict. [the schema's]")] = None,
    monotone: Annotated[str | None, typer.Option(help='Tables: such as "age:+,price:-". [the schema\'s]')] = None,
    schema: Annotated[Path | None, typer.Option(help="Tables: the schema's file. [NAME.schema.json]")] = None,
    test: Annotated[Path | None, typer.Option(help="Tables: held-out rows. [NAME.test.csv, or a fifth]")] = None,
    chain: Annotated[str | None, typer.Option(help="Tables: inf, one or two. [the preset's]")] = None,
    secure: Annotated[bool, typer.Option(help="Exact discrete noise (needs the extra 'secure').")] = False,
    resume: Annotated[bool, typer.Option(help="Go on with the interrupted run in --out, if there is one.")] = False,
) -> None:
    """Train a private, certified model on a data set, and write DIR/report.json."""
    import torch

    from dplip.data.tables import is_table
    from dplip.reports import write_pages

    images: dict[str, Any] = {"preset": goal, "model": model, "norm": norm}
    tables: dict[str, Any] = {"target": target, "monotone": monotone, "schema": schema, "test": test}
    given: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "chain": chain}
    loaded: Any
    recipe: Recipe[Any]
    if is_table(data):
        from dplip.cli.tables import table_and_recipe

        refuse(images, f"it is for images, and data={data!r} is a table.")
        kind = "monotone"
        loaded, recipe = table_and_recipe(data, data_dir, epsilon, **tables)
    else:
        kind = kind_of(model, goal)
        refuse({**tables, "chain": chain}, f"it is for a table, and data={data!r} is none.")
        loaded, recipe = images_and_recipe(data, data_dir, kind)
    recipe = dataclasses.replace(recipe, **given_alone(given))
    if seed is not None:
        torch.manual_seed(seed)
    folder = Path("runs") / loaded.name if out is None else out
    trainer = recipe.trainer(
        loaded,
        target_epsilon=epsilon,
        target_delta=delta,
        accountant=accountant.value,
        neighboring=neighboring.value,
        public_size=public_size,
        output_dir=folder,
        seed=seed,
        secure=secure,
        progress=progress,
        **given_alone({"max_physical_batch_size": max_physical_batch_size, "norm": norm}),
    )
    trainer.plan()
    settings = {"data": data, "model": kind, "preset": dataclasses.asdict(recipe)}
    settings |= given_alone({"classes": getattr(loaded, "num_classes", None)})
    now, begun = shlex.join(["dplip", *(word for word in sys.argv[1:] if word != "--resume")]), folder / "command.txt"
    if not resume:
        _mention_earlier(folder, delta)
        write_text(begun, f"{now}\n")
    before = begun.read_text().strip() if begun.exists() else now
    try:
        trainer.fit(resume=resume, extra={"run": settings})
    except KeyboardInterrupt:
        typer.echo(
            f"interrupted: epsilon {upper(trainer.get_epsilon())} is spent; go on by: {before} --resume", err=True
        )
        raise
    except LedgerError as wrong:
        if resume and before != now:
            raise LedgerError(f"{wrong}. The run was begun by: {before}; go on by the same with --resume.") from None
        raise
    show(folder)
    for page in write_pages(folder):
        typer.echo(f"          {page}")


def given_alone(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the user gave."""
    return {option: value for option, value in options.items() if value is not None}


def refuse(options: Mapping[str, Any], why: str) -> None:
    """Refuse options that do not apply to this data set."""
    for option in given_alone(options):
        raise ConfigurationError(f"--{option}: {why} Leave it out.")


def kind_of(model: ModelName | None, goal: Goal | None) -> str:
    """The kind of model that the two options mean."""
    if model is not None and goal is not None and model is not KIND_OF[goal]:
        raise ConfigurationError(
            f"--model {model.value} --preset {goal.value}: the preset means --model {KIND_OF[goal].value}. Give one."
        )
    return (KIND_OF[goal] if model is None else model).value


def images_and_recipe(data: str, data_dir: Path | None, kind: str) -> tuple[Data, ImageRecipe]:
    """The data set of images, and the recipe of a kind of model for it."""
    from dplip.data import load
    from dplip.models import preset

    loaded = load(data, data_dir)
    return loaded, preset(loaded.name, kind)


def _mention_earlier(folder: Path, delta: float) -> None:
    """Say what an earlier run in the folder spent, as the two runs compose."""
    from dplip.records import Ledger

    ledger = folder / "ledger.jsonl"
    if ledger.exists():
        spent = Ledger.read(ledger).epsilon(delta)
        typer.echo(
            f"an earlier run in {folder} spent epsilon {upper(spent)}; its ledger is kept, and the two add up", err=True
        )


def show(folder: Path) -> None:
    from dplip.records import read_report
    from dplip.reports.rounded import at_least

    report = read_report(folder)
    privacy, certified = report["privacy"], report["certified"]
    for name, value in report["utility"].items():
        if name in ("accuracy", "rmse") and value is not None:
            typer.echo(f"{name:<9} {value:.4f}")
    proof = report.get("monotonicity", {})
    if proof.get("directions"):
        typer.echo(f"monotone  {proof['directions']}, proved with margin {proof['margin']:.3g}")
    at = [(radius, a) for radius, a in zip(certified["radii"], certified["accuracy"], strict=True) if radius > 0]
    norm = f"l{number(certified['norm'])}"
    if at and not any(accuracy for _, accuracy in at):
        typer.echo(
            f"certified nothing at {norm} radius {upper(at[0][0])} and beyond: this model was not made for radii"
        )
        at = []
    for radius, accuracy in at:
        typer.echo(f"certified {at_least(accuracy)} at {norm} radius {at_least(radius)}")
    seeded = " (SEEDED: not private)" if privacy["seeded"] else ""
    typer.echo(f"epsilon   {upper(privacy['epsilon'])} at delta {privacy['delta']:g}, {privacy['neighboring']}{seeded}")
    if len(report["spent"]["runs"]) > 1:
        together = report["spent"]["epsilon"]
        total = "unknown" if together is None else upper(together)
        typer.echo(f"           {total} with the earlier runs of {folder}, on the same data: spent in the report")
    if isinstance(privacy["epsilon"], str):
        typer.echo("           no noise was added, so this model is not private")
    typer.echo(f"report    {folder / 'report.json'}")


def number(norm: float | str) -> str:
    return norm if isinstance(norm, str) else f"{norm:g}"


def upper(value: float | str) -> str:
    """An upper bound, rounded up, in the letters of any terminal."""
    from dplip.reports.rounded import at_most

    return at_most(value).replace("∞", "inf")
