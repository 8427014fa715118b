"""``dplip account``: what a run has spent, or would spend."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dplip.cli.app import AccountantName, Delta, Neighboring, app
from dplip.errors import ConfigurationError


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
    from dplip.accounting import GaussianEvent, create_accountant, get_noise_multiplier
    from dplip.records import Ledger

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
