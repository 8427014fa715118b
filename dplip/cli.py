"""The command line: ``dplip train``, ``dplip account``, ``dplip certify``, ``dplip audit``."""

from __future__ import annotations

import dataclasses
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import dplip
from dplip.errors import ConfigurationError, DPLipError

if TYPE_CHECKING:
    from torch import nn

    from dplip.data import Data
    from dplip.tabular import Table

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


class ModelName(str, Enum):
    """The kinds of model."""

    l2 = "l2"
    sortnet = "sortnet"
    windows = "windows"
    scattering = "scattering"


class PresetName(str, Enum):
    """The goals that a kind of model may be chosen by."""

    certified = "certified"
    accuracy = "accuracy"


KIND_OF = {None: ModelName.l2, PresetName.certified: ModelName.l2, PresetName.accuracy: ModelName.scattering}


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
        PresetName | None, typer.Option("--preset", help="certified: --model l2; accuracy: --model scattering.")
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

    from dplip.data import load
    from dplip.models import preset
    from dplip.tabular import is_table

    given: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "lr": lr}
    table = {"target": target, "monotone": monotone, "schema": schema, "test": test}
    if is_table(data):
        images: dict[str, Any] = {"preset": goal, "model": model, "norm": norm}
        for option, value in images.items():
            if value is not None:
                raise ConfigurationError(f"--{option}: it is for images, and data={data!r} is a table. Leave it out.")
        from dplip.cli_tabular import train_table

        folder = train_table(
            data,
            data_dir,
            table,
            {**given, "chain": chain},
            epsilon=epsilon,
            target_delta=delta,
            seed=seed,
            out=out,
            accountant=accountant.value,
            neighboring=neighboring.value,
            public_size=public_size,
            max_physical_batch_size=max_physical_batch_size,
            secure=secure,
            resume=resume,
            progress=progress,
        )
        _show(folder)
        return
    if model is not None and goal is not None and model is not KIND_OF[goal]:
        raise ConfigurationError(
            f"--model {model.value} --preset {goal.value}: the preset means --model {KIND_OF[goal].value}. Give one."
        )
    kind = KIND_OF[goal] if model is None else model
    for option, value in {**table, "chain": chain}.items():
        if value is not None:
            raise ConfigurationError(f"--{option}: it is for a table, and data={data!r} is none. Leave it out.")
    loaded = load(data, data_dir)
    recipe = dataclasses.replace(preset(loaded.name, kind.value), **{k: v for k, v in given.items() if v is not None})
    if seed is not None:
        torch.manual_seed(seed)
    memory: dict[str, Any] = (
        {"max_physical_batch_size": max_physical_batch_size} if max_physical_batch_size is not None else {}
    )
    trainer = recipe.trainer(
        loaded,
        target_epsilon=epsilon,
        target_delta=delta,
        accountant=accountant.value,
        neighboring=neighboring.value,
        public_size=public_size,
        output_dir=Path("runs") / loaded.name if out is None else out,
        seed=seed,
        secure=secure,
        progress=progress,
        norm=recipe.norm if norm is None else norm,
        **memory,
    )
    assert trainer.output_dir is not None
    if not resume:
        _mention_earlier(trainer.output_dir, delta)
    trainer.plan()
    settings = {"data": loaded.name, "model": kind.value, "preset": dataclasses.asdict(recipe)}
    try:
        trainer.fit(resume=resume, extra={"run": settings})
    except KeyboardInterrupt:
        spent = trainer.get_epsilon()
        typer.echo(f"interrupted: epsilon {spent:.4f} is spent; go on with --resume and the same flags", err=True)
        raise
    _show(trainer.output_dir)


@app.command()
def account(
    sample_rate: Annotated[float | None, typer.Option(help="Probability that an example is in a step.")] = None,
    steps: Annotated[int | None, typer.Option(help="Number of steps.")] = None,
    noise_multiplier: Annotated[float | None, typer.Option(help="Std of the noise per sensitivity.")] = None,
    epsilon: Annotated[float | None, typer.Option(help="In place of the noise: the epsilon to reach.")] = None,
    delta: Delta = 1e-5,
    accountant: Annotated[AccountantName | None, typer.Option(help="How steps are composed. [rdp]")] = None,
    neighboring: Annotated[Neighboring | None, typer.Option(help="The neighbouring relation. [add_remove]")] = None,
    ledger: Annotated[Path | None, typer.Option(help="Recompute what a run spent from its ledger alone.")] = None,
) -> None:
    """Say what a run spends, what noise a budget needs, or what a ledger shows."""
    from dplip.accounting import GaussianEvent, create_accountant
    from dplip.calibration import get_noise_multiplier
    from dplip.ledger import Ledger

    if ledger is not None:
        for option, value in {
            "sample-rate": sample_rate,
            "steps": steps,
            "noise-multiplier": noise_multiplier,
            "epsilon": epsilon,
            "accountant": accountant,
            "neighboring": neighboring,
        }.items():
            if value is not None:
                raise ConfigurationError(f"--{option}: with --ledger this is what the ledger says. Leave it out.")
        record = Ledger.read(ledger)
        typer.echo(f"epsilon {record.epsilon(delta):.6f} at delta {delta:g}, {record.neighboring}")
        return
    mechanism = "rdp" if accountant is None else accountant.value
    relation = "add_remove" if neighboring is None else neighboring.value
    if sample_rate is None or steps is None or (noise_multiplier is None) == (epsilon is None):
        raise ConfigurationError(
            "account: give --sample-rate and --steps with one of --noise-multiplier and --epsilon, or give --ledger."
        )
    if noise_multiplier is None:
        assert epsilon is not None
        noise_multiplier = get_noise_multiplier(
            target_epsilon=epsilon,
            target_delta=delta,
            sample_rate=sample_rate,
            steps=steps,
            accountant=mechanism,
            neighboring=relation,
        )
    event = GaussianEvent(noise_multiplier, sample_rate)
    spent = create_accountant(mechanism, relation).epsilon_after(event, steps, delta)
    typer.echo(f"epsilon {spent:.6f} at delta {delta:g}, noise multiplier {noise_multiplier:.6f}, {steps} steps")


@app.command()
def certify(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run of dplip train.")],
    data_dir: DataDir = None,
    norm: Annotated[float, typer.Option(help="1, 2 or inf: the norm in which inputs move.")] = 2,
    points: Annotated[int, typer.Option(help="Steps of the table, from 0 to the largest radius.", min=1)] = 10,
    plot: Annotated[Path | None, typer.Option(help="Also draw the curve here (needs the extra 'plot').")] = None,
) -> None:
    """Certify a trained model on its test data: accuracy against radius."""
    from dplip.certify import average_certified_radius, certified_curve, correct_radii

    model, loaded = _trained(run, data_dir)
    radii = correct_radii(model, loaded.test, norm)
    at, accuracy = certified_curve(radii, points)
    for radius, value in zip(at, accuracy, strict=True):
        typer.echo(f"radius {radius:8.4f}  certified accuracy {value:.4f}")
    typer.echo(f"average certified radius {average_certified_radius(radii):.4f} (norm {norm:g})")
    if plot is not None:
        from dplip.plots import certified_accuracy_plot

        certified_accuracy_plot(radii, plot, norm=norm)
        typer.echo(f"picture {plot}")


@app.command()
def schema(
    file: Annotated[Path, typer.Argument(help="A table: CSV or Parquet.")],
    target: Annotated[str | None, typer.Option(help="The column to predict.")] = None,
    from_data: Annotated[bool, typer.Option(help="Take ranges and levels from the values: NOT PRIVATE.")] = False,
    out: Annotated[Path | None, typer.Option(help="The file to write. [NAME.schema.json]")] = None,
) -> None:
    """Draft the schema of a table: the public ranges, levels and directions of its columns, to fill in."""
    from dplip.cli_tabular import draft_schema

    typer.echo(draft_schema(file, target, from_data, out))


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
    from dplip.models import KINDS
    from dplip.report import read_report

    report = read_report(run)
    options: dict[str, Any] = {"canaries": canaries, "starts": starts, "seed": seed}
    if report.get("run", {}).get("model") == "monotone":
        from dplip.cli_tabular import audit_table

        rows = audit_table(run, report, data_dir, **options)
    else:
        model, loaded = _trained(run, data_dir)
        assert isinstance(loaded, Data)  # not a table, as the report says
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in report["run"]["preset"].items()}
        recipe = KINDS[report["run"].get("model", "l2")](**settings)
        rows = audit_run(run, report, model, recipe.loss(), loaded.train, loaded.input_shape, **options)
    typer.echo(table(rows))
    if not all(row.survived for row in rows):
        raise typer.Exit(1)


def _trained(run: Path, data_dir: Path | None) -> tuple[nn.Module, Data | Table]:
    """The model that a run trained, and its data."""
    import torch

    from dplip.data import load
    from dplip.models import KINDS
    from dplip.report import read_report

    report = read_report(run)
    if report.get("run", {}).get("model") == "monotone":
        from dplip.cli_tabular import trained_table

        return trained_table(run, report, data_dir)
    try:
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in report["run"]["preset"].items()}
        recipe, name = KINDS[report["run"].get("model", "l2")](**settings), str(report["run"]["data"])
    except (AttributeError, KeyError, TypeError) as wrong:
        raise ConfigurationError(
            f"{run}: its report does not say how to build the model ({wrong}). Give a folder that dplip train wrote."
        ) from None
    loaded = load(name, data_dir)
    model = recipe.model(loaded.input_shape, loaded.num_classes)
    try:
        model.load_state_dict(torch.load(run / "model.pt", weights_only=True))
    except Exception as wrong:  # whatever a damaged file makes the reader raise
        raise ConfigurationError(
            f"{run / 'model.pt'}: no weights of this model can be read there ({type(wrong).__name__}). "
            "Restore it, without spending anything, by dplip train --resume with the flags of the run."
        ) from None
    return model, loaded


def _mention_earlier(folder: Path, delta: float) -> None:
    """Say what a run spent whose report and weights are about to be replaced: the two compose."""
    from dplip.ledger import Ledger

    ledger = folder / "ledger.jsonl"
    if ledger.exists():
        spent = Ledger.read(ledger).epsilon(delta)
        typer.echo(
            f"an earlier run in {folder} spent epsilon {spent:.4f}; its ledger is kept, and the two add up", err=True
        )


def _show(folder: Path) -> None:
    from dplip.report import read_report

    report = read_report(folder)
    privacy, certified = report["privacy"], report["certified"]
    for name, value in report["utility"].items():
        if name in ("accuracy", "rmse") and value is not None:
            typer.echo(f"{name:<9} {value:.4f}")
    proof = report.get("monotonicity", {})
    if proof.get("directions"):
        typer.echo(f"monotone  {proof['directions']}, proved with margin {proof['margin']:.3g}")
    for radius, accuracy in zip(certified["radii"], certified["accuracy"], strict=True):
        if radius > 0:
            typer.echo(f"certified {accuracy:.4f} at l{_number(certified['norm'])} radius {radius:.4f}")
    seeded = " (SEEDED: not private)" if privacy["seeded"] else ""
    epsilon = privacy["epsilon"] if isinstance(privacy["epsilon"], str) else f"{privacy['epsilon']:.4f}"
    typer.echo(f"epsilon   {epsilon} at delta {privacy['delta']:g}, {privacy['neighboring']}{seeded}")
    if isinstance(privacy["epsilon"], str):
        typer.echo("           no noise was added, so this model is not private")
    typer.echo(f"report    {folder / 'report.json'}")


def _number(norm: float | str) -> str:
    return norm if isinstance(norm, str) else f"{norm:g}"


def main() -> None:
    """Run the command line; an error of the library's is one sentence and exit code 2, never a traceback."""
    try:
        app()
    except DPLipError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
