"""The regularity of splines: second-order total variation, its penalty, linear regions, and pruning.

All of these are functions of the weights, so after the noise they cost no privacy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from dplip.errors import ConfigurationError
from dplip.nn.splines.spline import Spline
from dplip.propagation.checks import PublicHook

SAME_SLOPE = 1e-5
"""The largest change of slope that counts as float32 rounding of the coefficients."""


def total_variation(model: nn.Module) -> Tensor:
    """The second-order total variation of all splines of a model: the sum of their absolute changes of slope.

    The tails are included, and the scale has no effect. Differentiable.
    """
    parts = [spline.changes().abs().sum() for _, spline in _splines(model)]
    return torch.stack(parts).sum()


def penalize_variation(optimizer: Optimizer, model: nn.Module, weight: float) -> RemovableHandle:
    """Add the gradient of ``weight * total_variation(model)`` to ``.grad`` before each step of an optimizer.

    Args:
        optimizer: a torch optimizer, or the private one that wraps it.
        model: a model with splines.
        weight: in the units of the mean loss of an example.

    Returns:
        A handle that removes the penalty.

    Guarantee: costs no privacy. A private step runs the wrapped optimizer and this hook after the noise, and the
    penalty is a function of weights that are already public.
    """
    if not weight >= 0:
        raise ConfigurationError(f"weight={weight}: a penalty has a weight >= 0.")
    total_variation(model)  # refuses a model without splines

    def add(*_: Any) -> None:
        learned = [p for _, spline in _splines(model) for p in spline.parameters() if p.grad is not None]
        with torch.enable_grad():
            found = torch.autograd.grad(weight * total_variation(model), learned, allow_unused=True)
        for p, g in zip(learned, found, strict=True):
            if p.grad is not None and g is not None:
                p.grad.add_(g)

    return getattr(optimizer, "original", optimizer).register_step_pre_hook(_Penalty(add))


class _Penalty(PublicHook):
    """The hook of a penalty on the weights, which are public."""

    def __init__(self, add: Callable[..., None]) -> None:
        self._add = add

    def __call__(self, *arguments: Any) -> None:
        self._add(*arguments)


@torch.no_grad()
def linear_regions(model: nn.Module, tolerance: float = 1e-3) -> dict[str, Tensor]:
    """For each spline layer, the number of linear regions of each spline: one more than its active knots.

    A knot is active where the slope changes by more than ``tolerance``.
    """
    return {name: 1 + (s.changes().abs() > tolerance).sum(1) for name, s in _splines(model)}


@torch.no_grad()
def prune(model: nn.Module, tolerance: float = 1e-2) -> int:
    """Give one slope to neighbouring pieces whose slopes lie within ``tolerance``; returns the number of knots freed.

    Guarantee: slopes stay within their interval, and no value of a spline of range R and scale a moves by more than
    ``tolerance R / a``. It costs no privacy (post-processing).
    Proof: a run of slopes within ``tolerance`` that is replaced by its mean keeps its rise. If a share p of its slopes
    lies above the mean, the function moves inside by at most ``p (1 - p) tolerance`` times the run's length, which is
    at most 2 R: half of the bound. Keeping the mean over the knots adds a shift of at most the same size.
    """
    freed = 0
    for _, spline in _splines(model):
        before = spline.changes()
        spline.set_slopes(_merged(spline.between(), tolerance))
        freed += int((before.abs() > SAME_SLOPE).sum() - (spline.changes().abs() > SAME_SLOPE).sum())
    return freed


def _merged(slope: Tensor, tolerance: float) -> Tensor:
    """Each row cut, left to right, into the longest runs within the tolerance, with each run replaced by its mean."""
    rows, pieces = slope.shape
    run = torch.zeros(rows, pieces, dtype=torch.int64, device=slope.device)
    least, most = slope[:, 0].clone(), slope[:, 0].clone()
    for k in range(1, pieces):
        least, most = torch.minimum(least, slope[:, k]), torch.maximum(most, slope[:, k])
        broken = most - least > tolerance
        run[:, k] = run[:, k - 1] + broken
        least, most = (torch.where(broken, slope[:, k], edge) for edge in (least, most))
    total = torch.zeros_like(slope).scatter_add(1, run, slope)
    length = torch.zeros_like(slope).scatter_add(1, run, torch.ones_like(slope))
    return (total / length.clamp_min(1)).gather(1, run)


def _splines(model: nn.Module) -> Iterator[tuple[str, Spline]]:
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, Spline)]
    if not found:
        raise ConfigurationError(f"{type(model).__name__} has no splines: use dplip.nn.LinearSpline.")
    yield from found
