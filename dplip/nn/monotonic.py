"""Networks that are monotone by construction: a branch of bounded slope plus a steeper linear residual."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dplip.constraints import Constraint, constrain, project
from dplip.constraints.base import Constraints
from dplip.errors import ConfigurationError
from dplip.norms import NormCache, Norms, largest
from dplip.propagation import Walk

RESERVE = 1e-4
"""Relative excess of the residual's slope over ``lipschitz``, which covers the slack of a certified slope."""

Directions = Sequence[int] | Sequence[Sequence[int]] | Tensor


def signs(directions: Directions) -> Tensor:
    """Directions as a tensor, one for each feature or a matrix (features, outputs).

    Raises:
        ConfigurationError: they are not numbers -1, 0 and +1.
    """
    try:
        s = torch.as_tensor(directions, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):  # words, or rows of several lengths
        s = torch.full((1,), math.nan)
    if s.ndim not in (1, 2) or not bool(((s == 0) | (s.abs() == 1)).all()):
        raise ConfigurationError(
            f"directions={directions!r}: give one of the numbers -1, 0 and +1 for each feature (+1: the output does "
            "not fall when it rises), or a matrix (features, outputs) of them."
        )
    return s


class Monotonic(nn.Module):
    """``g(x) = f(x) + slope * x S``: monotone where S is +1 or -1, for all weights of f.

    Args:
        module: f, from (batch, features) to (batch, outputs), a model whose operations have rules; it is not changed.
        directions: S, one of -1, 0, +1 for each feature (the same for every output), or a matrix (features, outputs);
            +1: the output does not fall when the feature rises.
        lipschitz: the largest slope of f in one feature that the residual makes up for; None: computed from f's
            pullback, and again after every projection (``dplip.project``, which a private step calls).

    Attributes:
        slope: a frozen parameter, ``lipschitz`` times ``1 + 1e-4``; not trained, saved with the weights.

    Raises:
        ConfigurationError: f's certified slope exceeds ``lipschitz``, for its present weights or for constrained
            weights at the edge of their sets; every projection, and so every private step, checks the present weights
            again. Also for directions that do not fit f.

    Guarantee: in exact arithmetic, ``s_i dg_j/dx_i`` lies in [slope - L, slope + L] with L <= slope the certified bound
    on f's slopes: f's pullback sends one output's cotangent to an l-infinity norm of at most L, which bounds each
    partial derivative (f is Lipschitz, so it is the integral of them). :func:`dplip.certify_monotonic` proves it for
    the weights at hand, also of a larger model that this one is a part of.
    Source: Kitouni, Nolte and Williams, 2021 (arXiv 2112.00038); Nolte, Kitouni and Williams, ICLR 2023.
    """

    directions: Tensor

    def __init__(self, module: nn.Module, directions: Directions, lipschitz: float | None = 1.0) -> None:
        super().__init__()
        s = signs(directions)
        if lipschitz is not None and not (math.isfinite(lipschitz) and lipschitz > 0):
            raise ConfigurationError(f"lipschitz={lipschitz}: the slope to make up for is a finite number > 0.")
        outputs = _outputs(module, len(s))
        matrix = s[:, None].expand(-1, outputs) if s.ndim == 1 else s
        if matrix.shape[1] != outputs:
            raise ConfigurationError(f"directions of shape {tuple(s.shape)}: the module has {outputs} outputs.")
        self.module = module
        self.lipschitz = lipschitz
        like = next((p for p in module.parameters() if p.is_floating_point()), s)
        self.register_buffer("directions", matrix.T.contiguous().to(like))
        start = 0.0 if lipschitz is None else lipschitz * (1 + RESERVE)
        self.slope = nn.Parameter(torch.tensor(start).to(like), requires_grad=False)
        if lipschitz is not None:
            _require(
                slope_bound(Walk(_at_the_edge(module), (len(s),))), self, "with its constrained weights at their limits"
            )
        constrain(self, "slope", Residual())

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x) + F.linear(x, self.directions) * self.slope

    def extra_repr(self) -> str:
        return f"lipschitz={'read off' if self.lipschitz is None else format(self.lipschitz, 'g')}"


class Residual(Constraint):
    """The constraint on the slope of a residual: it is at least the certified slope of the branch."""

    axes = 0

    def __init__(self) -> None:
        super().__init__()
        self._traced = _Traced()

    def project(self, weight: Tensor, layer: nn.Module) -> None:
        assert isinstance(layer, Monotonic)
        project(layer.module)  # first, so that the slope is that of the projected weights
        # The norms are computed exactly here, because cached norms are looser than the reserve.
        with NormCache(tolerance=0.0):
            bound = slope_bound(self._traced.walk(layer.module, layer.directions.shape[1]))
        if layer.lipschitz is None:
            if not math.isfinite(bound):
                _require(bound, layer, "with its present weights")
            weight.detach().fill_(bound * (1 + RESERVE))
        else:
            _require(bound, layer, "with its present weights")


class _Traced:
    """A cache of a module's trace between projections, which is not copied or saved with the module."""

    def __init__(self) -> None:
        self._walk: Walk | None = None

    def walk(self, module: nn.Module, features: int) -> Walk:
        if self._walk is None or self._walk.model is not module or not self._walk.current():
            self._walk = Walk(module, (features,))
        return self._walk

    def __reduce__(self) -> tuple[type[_Traced], tuple[()]]:
        return _Traced, ()


def slope_bound(walk: Walk) -> float:
    """A certified bound on every partial derivative of every output of a model, for its present weights."""
    walk.refuse_surrogates()
    output, pullback = walk()
    # The cotangent of one output is one-hot, so all of its norms are 1.
    return largest(pullback(Norms(output.shape, l1=1.0))[0].linf)


def _outputs(module: nn.Module, features: int) -> int:
    output, _ = Walk(module, (features,))()
    if len(output.shape) != 1:
        raise ConfigurationError(
            f"output of shape {output.shape}: a monotone model maps (batch, features) to (batch, outputs)."
        )
    return output.shape[0]


@torch.no_grad()
def _at_the_edge(module: nn.Module) -> nn.Module:
    """A copy whose constrained weights lie at the edge of their sets, where training may take them.

    With it, constraints that allow too large a slope are refused before training.
    """
    edge = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(0)
    for layer in edge.modules():
        held = layer._modules.get("constraints")
        if isinstance(held, Constraints) and not isinstance(layer, Monotonic):
            for name in held:
                weight = layer.get_parameter(name)
                weight.copy_(1e6 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    project(edge)
    return edge


def _require(bound: float, layer: Monotonic, when: str) -> None:
    if not bound <= float(layer.slope):
        limit = "no bound" if layer.lipschitz is None else f"lipschitz={layer.lipschitz:g}"
        raise ConfigurationError(
            f"Monotonic: {when}, the module's certified slope is {bound:.6g} and the residual makes up for {limit}, so "
            "it would not be monotone. Constrain its layers so that their norms multiply to at most that: for example "
            "EntryBall on the first and RowL1Ball on the others (ColumnL1Ball, or SpectralBall, on all); or raise "
            "lipschitz."
        )
