"""The audit of a finished run: each promise, how it was attacked, and whether it survived."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sized
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import Dataset, Subset

from dplip.audit.canary import CanaryAudit, audit_noise
from dplip.audit.gradient import GradientAudit, gradient_search
from dplip.audit.one_run import one_run
from dplip.audit.replay import replay
from dplip.errors import ConfigurationError
from dplip.losses import Loss
from dplip.records import Ledger, write_report
from dplip.runtime.precision import full_precision

_EXAMPLES, _STEPS = 1500, 40  # of the trainings that are repeated under attack


@dataclass(frozen=True)
class Row:
    """One attack: the promise, the number of tries, the promised bound, and the largest value found."""

    promise: str
    tried: str
    bound: float
    found: float
    survived: bool
    note: str = ""


def table(rows: list[Row]) -> str:
    """The rows as text."""
    width = max(len(r.promise) for r in rows)
    tried = max(len(r.tried) for r in rows)
    lines = [f"{'promise':<{width}}  {'tried':<{tried}}  {'bound':>10}  {'found':>10}  survived"]
    for r in rows:
        verdict = ("yes" if r.survived else "NO") + (f"  ({r.note})" if r.note else "")
        lines.append(f"{r.promise:<{width}}  {r.tried:<{tried}}  {r.bound:>10.6g}  {r.found:>10.6g}  {verdict}")
    return "\n".join(lines)


def write_audit(folder: str | Path, rows: list[Row]) -> None:
    """Keep the rows in ``audit.json`` of a run's folder, with the run that they are about."""
    record = Ledger.read(Path(folder) / "ledger.jsonl")
    about = {"run": record.run, "events": len(record.events)}
    write_report(Path(folder) / "audit.json", {**about, "rows": [asdict(row) for row in rows]})


@full_precision()
def audit_run(
    folder: str | Path,
    report: Mapping[str, Any],
    model: nn.Module,
    loss: Loss,
    data: Dataset[Any],
    input_shape: tuple[int, ...],
    *,
    optimizer: Callable[[Any], Optimizer] | None = None,
    canaries: int = 10_000,
    starts: int = 24,
    seed: int = 0,
) -> list[Row]:
    """Attack the promises of a finished run, on its model, its data and its constants.

    Args:
        folder: the run's folder, whose ledger is read.
        report: the run's report.
        model, loss, data, input_shape: the run's trained model, loss, training data and shape of one example.
        optimizer: from parameters to the optimizer of the repeated trainings; None: SGD.
        canaries: number of canaries in the attack on the noise.
        starts: number of starts of the search for long gradients, from the data and from scratch.
        seed: seed of starts and coins, never of the noise.

    Returns:
        A row for each attack.

    Raises:
        ConfigurationError: the run's batches were not drawn by Poisson sampling.
    """
    privacy = report["privacy"]
    sigma, rate, delta = (float(privacy[k]) for k in ("noise_multiplier", "sample_rate", "delta"))
    if privacy.get("sampling", "poisson") != "poisson":
        raise ConfigurationError(
            f"sampling={privacy['sampling']!r} in the report: the attacks repeat the training on Poisson batches, "
            "which this run's were not. Check its ledger with dplip account --ledger."
        )
    model.train()
    found = gradient_search(model, loss, input_shape, data, starts=starts, seed=seed)
    rows = [_ledger(Path(folder), privacy), *_gradients(found)]
    x, y = found.worst
    target = torch.as_tensor(data[0][1])  # the search has targets in the shape of the scores
    y = y.reshape(target.shape).to(target.dtype)
    some = Subset(data, range(min(_EXAMPLES, len(cast(Sized, data)))))
    step: Any = {"input_shape": input_shape, "noise_multiplier": sigma, "neighboring": privacy["neighboring"]}
    training = {**step, "optimizer": optimizer}
    for most in (None, 64):
        moved = replay(model, loss, some, example=(x, y), max_physical_batch_size=most, seed=seed, **training)
        parts = "" if most is None else f" in parts of {most}"
        rows.append(
            Row(
                f"neighbouring steps{parts} differ within the sensitivity",
                f"{moved.steps} steps",
                1.0,
                max(moved.joint, *moved.largest.values()),
                not moved.violated,
                "; ".join(moved.problems),
            )
        )
    if sigma > 0:
        noise = audit_noise(model, loss, delta=delta, canaries=canaries, seed=seed, **step)
        rows.append(_canaries("epsilon of one full step", noise))
        if loss.classes(1) is not None:
            steps = min(_STEPS, int(privacy["steps"]))
            run = one_run(model, loss, some, sample_rate=rate, steps=steps, delta=delta, **training)
            rows.append(_canaries(f"epsilon of {steps} steps", run))
    return rows


def _canaries(promise: str, found: CanaryAudit) -> Row:
    # Of a Gaussian, guesses show half of epsilon at the very best.
    weak = f"so few canaries show {found.most:.3g} at most" if found.most < found.accounted / 4 else ""
    return Row(promise, f"{found.canaries} canaries", found.accounted, found.lower, not found.violated, weak)


def _gradients(found: GradientAudit) -> list[Row]:
    rows = [(f"gradient of {name}", bound, found.attained[name]) for name, bound in found.declared.items()]
    rows.append(("gradient of all", found.declared.total, found.total))
    return [Row(promise, f"{found.tried} gradients", bound, most, most <= bound) for promise, bound, most in rows]


def _ledger(folder: Path, privacy: Mapping[str, Any]) -> Row:
    """A comparison of the ledger with the report."""
    record = Ledger.read(folder / "ledger.jsonl")
    spent, said = record.epsilon(float(privacy["delta"])), float(privacy["epsilon"])
    agree = (
        record.mechanism == privacy["accountant"]
        and record.neighboring == privacy["neighboring"]
        and len(record.events) == int(privacy["steps"]) + len(privacy.get("releases", []))
        and (spent <= said * (1 + 1e-9) or math.isinf(said))
    )
    note = "" if agree else "the ledger shows something else than the report says"
    return Row("epsilon of the report", f"{len(record.events)} ledger lines", said, spent, agree, note)
