"""Export of a finished run for a service without dplip: the model by torch.export, and what certifies it as JSON.

A service computes the scores z of an input, takes the highest one, y, and certifies that no input closer than

    radius = min over j != y of (z[y] - z[j] - rounding[y][j]) / slopes[y][j], at most ``largest``, at least 0

has another label; for a single score z, radius = (abs(z) - rounding[0][0]) / slopes[0][0].

Proof. Let x and x' be inputs less than that radius apart, x in the declared range, and g the exact difference
``z_y - z_j``. ``slopes[y][j]`` bounds the dual norm of its gradient everywhere, so g falls by less than
slope times radius from x to x'. What is computed differs from g by at most half of ``rounding[y][j]`` at x, and at x',
which is at most ``largest`` away. So the computed difference at x' is above the computed one at x less slope times
radius less rounding, which is at least 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dplip.certificates import Certifier
from dplip.errors import ConfigurationError, first_line
from dplip.norms import Norms
from dplip.runtime.files import write_text

if TYPE_CHECKING:
    from dplip.runs.loaded_run import LoadedRun

SLACK = 1 + 1e-9
"""What a service rounds when it subtracts and divides in double precision."""

NAMES = {1: "l1", 2: "l2", math.inf: "linf"}


def export(run: LoadedRun, path: str | Path, norm: float | None, low: float, high: float, largest: float) -> Path:
    """Write the model to ``path`` and what certifies it beside it, as :meth:`LoadedRun.export` says."""
    path = Path(path)
    beside = path.with_suffix(".json")
    if path.suffix != ".pt2":
        raise ConfigurationError(f"path={str(path)!r}: name a file that ends in .pt2, as torch.export's do.")
    for file in (path, beside):
        if file.exists():
            raise ConfigurationError(f"path={str(file)!r}: it is there, and is not overwritten. Name a new file.")
    if not -math.inf < low < high < math.inf or not 0 < largest < math.inf:
        raise ConfigurationError(f"low={low}, high={high}, largest={largest}: give a range, and a distance above 0.")
    description = {
        "dplip": run.report["versions"]["dplip"],
        "torch": torch.__version__,
        "weights": run.report["provenance"]["weights"],
        "privacy": privacy(run.report),
        "input": {"shape": list(run.input_shape), "dtype": _dtype(run), "low": low, "high": high},
        "certificate": certificate(run, norm, low, high, largest),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        made = program(run)
        require_same(run, made.module(), low, high)
        torch.export.save(made, path)
    except ConfigurationError:
        raise
    except Exception as wrong:  # whatever torch's exporter raises for code that it does not take
        path.unlink(missing_ok=True)
        raise ConfigurationError(
            f"path={str(path)!r}: torch.export does not take this model ({first_line(wrong)})."
        ) from None
    write_text(beside, json.dumps(description, indent=2, allow_nan=False) + "\n")
    return beside


def privacy(report: Mapping[str, Any]) -> dict[str, Any]:
    """What was spent in the folder of the run; no epsilon if a run there was seeded, and so not private."""
    spent = report["spent"]
    seeded = report["privacy"]["seeded"] or any(each.get("seeded") for each in spent["runs"])
    return {"epsilon": "inf" if seeded else spent["epsilon"], "delta": report["privacy"]["delta"]}


@torch.no_grad()
def require_same(run: LoadedRun, exported: Any, low: float, high: float) -> None:
    """Refuse a program that does not give the scores of the model, on random inputs in batches of one and of five."""
    for count in (1, 5):
        x = low + (high - low) * torch.rand(count, *run.input_shape, dtype=getattr(torch, _dtype(run)))
        expected = run.model(x)
        if not torch.allclose(exported(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max().clamp_min(1))):
            raise ConfigurationError(
                "torch.export gave another program than the model, so nothing is exported. Its code depends on "
                "something else than its input: on time, on chance, or on a global."
            )


def program(run: LoadedRun) -> Any:
    """The exported model, for batches of any size."""
    x = torch.rand(2, *run.input_shape, dtype=getattr(torch, _dtype(run)))
    dynamic = ({0: torch.export.Dim("batch")},)
    return torch.export.export(run.model.cpu().eval(), (x,), dynamic_shapes=dynamic)


def certificate(run: LoadedRun, norm: float | None, low: float, high: float, largest: float) -> dict[str, Any]:
    """Slopes and roundings for the formula; or, under ``why``, the reason for which there are none."""
    norm = run.norm if norm is None else norm
    shown: dict[str, Any] = {"norm": "inf" if math.isinf(norm) else norm}
    if run.schema is not None:
        return {**shown, "why": "the radii of a table are those of scaled columns: predict with dplip"}
    certifier = run.certifier(norm)
    if not isinstance(certifier, Certifier):
        return {**shown, "why": certifier}
    slopes, rounding = certifier.slopes * SLACK, roundings(certifier, low, high, largest) * SLACK
    if not bool(slopes.isfinite().all() and rounding.isfinite().all()):
        return {**shown, "why": "no bound of the slopes or of the roundings is finite"}
    return {**shown, "largest": largest, "slopes": slopes.tolist(), "rounding": rounding.tolist()}


def roundings(certifier: Certifier, low: float, high: float, largest: float) -> Tensor:
    """For each pair of classes, how far the computed differences of scores at two inputs are from the exact ones.

    They hold for every input whose entries lie in [low, high], and every other one at most ``largest`` from it.
    """
    walk, rounding = certifier.walk, certifier.rounding
    size, most = math.prod(walk.input_shape), max(abs(low), abs(high))
    within = Norms(walk.input_shape, l1=most * size, l2=most * math.sqrt(size) * SLACK, linf=most)
    sizes = {node: value for node, value in walk.forward(within)[0].items() if isinstance(value, Norms)}
    moved = Norms(walk.input_shape, **{NAMES[certifier.norm]: largest})
    errors = rounding.errors(sizes, moved)
    # of_scores counts the rounding at x in float64 where it can; a service has computed both in the model's own type.
    return rounding.of_scores(errors, torch.arange(len(certifier.slopes))) * (2 / rounding.share)


def _dtype(run: LoadedRun) -> str:
    weight = next((p for p in run.model.parameters() if p.is_floating_point()), torch.zeros(()))
    return str(weight.dtype).removeprefix("torch.")
