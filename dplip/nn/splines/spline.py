"""Learnable activations of bounded slope: piecewise linear splines on public knots, one for each feature."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dplip.constraints import constrain
from dplip.errors import ConfigurationError
from dplip.nn.splines.constraints import EntryRange, SplineProj, centred_values
from dplip.nn.splines.piecewise import pieces, piecewise_linear
from dplip.norms import REDUCTION_SLACK, Bound, Norms, OperatorNorms, least, times
from dplip.rules import SUMMATIONS, Pullback, Summation, refuse_module, rule
from dplip.rules.shape import example_axis


def maxmin(t: Tensor) -> Tensor:
    """|t| for even features and t for odd ones, which is MaxMin between two rotations of neighbouring pairs."""
    even = torch.arange(len(t), device=t.device)[:, None] % 2 == 0
    return torch.where(even, t.abs(), t)


INITS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": torch.clone,
    "relu": torch.relu,
    "absolute": torch.abs,
    "maxmin": maxmin,
    "zero": torch.zeros_like,
}
"""The initial functions of splines, by name."""


def _parameter(start: Tensor) -> nn.Parameter:
    return nn.Parameter(start.to(torch.get_default_dtype()))


class Spline(nn.Module):
    """Base class of splines with the grid, the tails and the scale; a subclass has the learned coordinates."""

    tails: Tensor

    def __init__(
        self,
        num_features: int,
        knots: int = 21,
        range: float = 1.0,
        init: str | Callable[[Tensor], Tensor] = "identity",
        slopes: tuple[float, float] = (-1.0, 1.0),
        min_scale: float | None = None,
        dim: int = 1,
    ) -> None:
        super().__init__()
        if num_features < 1 or knots < 2 or not 0 < range < math.inf:
            raise ConfigurationError(
                f"num_features={num_features}, knots={knots}, range={range}: give at least one feature, two knots, and "
                "a finite range > 0."
            )
        low, high = slopes
        if not -math.inf < low <= high < math.inf:
            raise ConfigurationError(f"slopes={slopes}: give the ends of a finite interval, the lower one first.")
        if min_scale is not None and not 0 < min_scale <= 1:
            raise ConfigurationError(f"min_scale={min_scale}: the floor of a scale that starts at 1 lies in (0, 1].")
        if isinstance(init, str) and init not in INITS:
            raise ConfigurationError(f"init={init!r}: choose one of {list(INITS)}, or give a function.")
        self.num_features, self.knots, self.range, self.dim = num_features, knots, float(range), dim
        self.slopes, self.min_scale = (float(low), float(high)), min_scale
        self.step = 2 * self.range / (knots - 1)
        # The initial values at the knots, and one step beyond them on each side for the tails.
        grid = (torch.arange(-1, knots + 1, dtype=torch.float64) - (knots - 1) / 2) * self.step
        start = (INITS[init] if isinstance(init, str) else init)(grid.expand(num_features, -1))
        rises = (start.diff(dim=1) / self.step).clamp(low, high)
        self.register_buffer("tails", rises[:, [0, -1]].to(torch.get_default_dtype()))
        self.start(start[:, 1:-1].mean(1), rises[:, 1:-1])
        self.log_scale = None if min_scale is None else nn.Parameter(torch.zeros(()))
        if min_scale is not None:
            constrain(self, "log_scale", EntryRange(math.log(min_scale)))

    def start(self, mean: Tensor, slope: Tensor) -> None:
        """Create the parameters of splines with these means over the knots and these slopes between them."""
        raise NotImplementedError

    def values(self) -> Tensor:
        """Each spline's values at its knots, in float64, shape (num_features, knots); differentiable."""
        raise NotImplementedError

    def changes(self) -> Tensor:
        """The change of slope at each knot, in float64, shape (num_features, knots); differentiable."""
        tails = self.tails.double()
        return torch.cat((tails[:, :1], self.between(), tails[:, 1:]), 1).diff(dim=1)

    def between(self) -> Tensor:
        """The slopes between the knots, in float64, shape (num_features, knots - 1); differentiable."""
        raise NotImplementedError

    def set_slopes(self, slope: Tensor) -> None:
        """Set the slopes between the knots, shape (num_features, knots - 1), and keep the means over the knots."""
        raise NotImplementedError

    def reach(self) -> dict[str, tuple[float, float, float]]:
        """Per parameter, bounds of the l1, l2 and l-infinity norms of the gradient of one value of one spline."""
        raise NotImplementedError

    def pieces(self) -> tuple[Tensor, Tensor]:
        """The intercept and the slope of each piece, tails included, shape (num_features, knots + 1), at scale 1."""
        values = self.values()
        return pieces(values, self.tails.to(values), self.step)

    def scale(self) -> float:
        """The present scale a."""
        return 1.0 if self.log_scale is None else float(self.log_scale.detach().double().exp())

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[self.dim] != self.num_features:
            raise ConfigurationError(
                f"x of shape {tuple(x.shape)}: axis {self.dim} must hold num_features={self.num_features} entries."
            )
        return piecewise_linear(x, self.values(), self.tails, self.log_scale, self.step, self.dim)

    def extra_repr(self) -> str:
        shown = f"{self.num_features}, knots={self.knots}, range={self.range:g}, slopes={self.slopes}"
        return shown + ("" if self.min_scale is None else f", min_scale={self.min_scale:g}")


class LinearSpline(Spline):
    """``y = sigma_f(a x) / a`` with a learnable piecewise linear sigma_f for each feature or channel f.

    The parameters are each spline's mean over its knots and its slopes between them. Beyond the knots the slopes are
    the initial ones, which are public (the gradient in a learned tail would grow with x).

    Args:
        num_features: size of the axis ``dim``; each feature has its own spline, shared by all positions.
        knots: number of knots, evenly spaced over [-range, range].
        range: the largest knot, of roughly the size of the inputs.
        init: ``"identity"``, ``"relu"``, ``"absolute"``, ``"maxmin"``, ``"zero"``, or a function of the knots, which
            maps a tensor (num_features, knots + 2) to values of the same shape.
        slopes: the public interval in which slopes are kept after each step; [0, 1] makes the splines monotone.
        min_scale: learn the scale a, initially 1, and keep it at or above this floor; None: a is 1.
        dim: the axis of features, after the batch.

    Shape: (batch, ..., num_features, ...) to the same.

    Guarantee: with L the largest absolute slope (at most that of ``slopes`` after a projection), L-Lipschitz in every
    lp norm, for every input (NaN counts as 0, entries are cut at 1e30). For one example of P positions and an output
    gradient v, the gradients have l2 norm at most ``sqrt(P) |v|_2 / a`` (mean) and
    ``R sqrt(2 (2n - 1) / (3 n (n - 1))) sqrt(P) |v|_2 / a`` (slope; about 1.15 R / sqrt(n)), for n knots of range R and
    every input.
    Source: Ducotterd, Goujon, Bohra, Perdios, Neumayer and Unser, 2024 (arXiv 2210.16222), whose coordinates are the
    values at the knots (:class:`CoefficientSpline`); docs/splines.md derives these coordinates and the bounds.
    """

    mean: nn.Parameter
    slope: nn.Parameter

    def start(self, mean: Tensor, slope: Tensor) -> None:
        self.mean, self.slope = _parameter(mean), _parameter(slope)
        constrain(self, "slope", EntryRange(*self.slopes))

    def values(self) -> Tensor:
        return self.mean.double()[:, None] + centred_values(self.slope.double() * self.step)

    def between(self) -> Tensor:
        return self.slope.double()

    @torch.no_grad()
    def set_slopes(self, slope: Tensor) -> None:
        self.slope.copy_(slope)

    def reach(self) -> dict[str, tuple[float, float, float]]:
        # With n knots a step T apart, the value at knot k is mean + sum_j B_j(k) s_j, where B_j(k) is T j/n for j <= k,
        # and -T (n - j)/n for j > k (j = 1, ..., n - 1). All norms of B are convex between knots, and convex in k at
        # the knots, so they are largest at an end, where B_j = T j/n. In a tail B is constant.
        n = self.knots
        two = self.step * math.sqrt((n - 1) * (2 * n - 1) / (6 * n))
        return {"mean": (1.0, 1.0, 1.0), "slope": (self.range, two, self.step * (n - 1) / n)}


class CoefficientSpline(Spline):
    """:class:`LinearSpline` whose learned coordinates are the values at the knots, as in the source.

    After a step :class:`dplip.nn.SplineProj` clips the slopes and keeps the mean of the values. Without noise these
    coordinates fit fine detail faster; noise in them is white, where noise in the slopes is smooth (docs/splines.md).

    Guarantee: as for :class:`LinearSpline`, with a gradient in the coefficients of l2 norm at most
    ``sqrt(P) |v|_2 / a``.
    """

    coefficient: nn.Parameter

    def start(self, mean: Tensor, slope: Tensor) -> None:
        self.coefficient = _parameter(mean[:, None] + centred_values(slope * self.step))
        constrain(self, "coefficient", SplineProj(*self.slopes, self.step))

    def values(self) -> Tensor:
        return self.coefficient.double()

    def between(self) -> Tensor:
        return self.values().diff(dim=1) / self.step

    @torch.no_grad()
    def set_slopes(self, slope: Tensor) -> None:
        mean = self.values().mean(1, keepdim=True)
        self.coefficient.copy_(mean + centred_values(slope.double() * self.step))

    def reach(self) -> dict[str, tuple[float, float, float]]:
        # The gradient is that of the hat functions: (1 - t, t) at two neighbouring knots, or 1 at one.
        return {"coefficient": (1.0, 1.0, 1.0)}


@rule(Spline, LinearSpline, CoefficientSpline)
def spline(module: Spline, x: Norms) -> tuple[Norms, Pullback]:
    axis = example_axis(module.dim, x)
    if x.shape[axis] != module.num_features:
        refuse_module(module, f"is given one example of shape {x.shape}.", "Give it num_features entries on that axis.")
    a = module.scale()
    with torch.no_grad():
        intercept, slope = module.pieces()
    if not (0 < a < math.inf and bool(intercept.isfinite().all()) and bool(slope.isfinite().all())):
        refuse_module(module, f"has a scale of {a:g} or coefficients that are not finite.", "Restore finite values.")
    sizes = [1] * len(x.shape)
    sizes[axis] = module.num_features
    # sigma(a x) / a has the slopes of sigma and the value sigma(0) / a at 0. The layer takes the same piece for 0.
    jacobian = OperatorNorms.diagonal(float(slope.abs().max()))
    zero = intercept[:, math.floor((module.knots - 1) / 2) + 1] / a
    # At a knot, rounding may select the neighbouring piece. This moves the value by at most the change of slope times
    # knots 2^-24 steps, where |x| is at least half a step.
    rounded = 1 + module.knots * 2.0**-21
    output = jacobian(x, x.shape) * rounded + Norms.of(zero.reshape(sizes)).repeat(x.shape)
    if not bool(module.tails.any()):
        top = float(module.values().detach().abs().max()) / a * (1 + REDUCTION_SLACK)
        output = output & Norms(x.shape, linf=top)

    def pullback(v: Norms) -> Any:
        # The gradient of a parameter of spline f sums over the positions of f: at most sum_p |v_fp| times its reach.
        sums = v.sum_to((module.num_features,))
        gradients = {}
        for name, (one, two, most) in module.reach().items():
            bounds: tuple[Bound, ...] = (times(one / a, v.l1), times(two / a, sums.l2), times(most / a, sums.linf))
            gradients[name] = Norms(tuple(module.get_parameter(name).shape), *bounds)
        if module.log_scale is not None:
            # y = (intercept of the piece) / a + slope x, so that dy / d log a = -intercept / a. The gradient of one
            # example sums v times this over all entries: |v_fp| over positions first, then Hoelder over features.
            peaks = Norms.of(intercept.abs().amax(1))
            bound = least(times(v.l1, peaks.linf), times(sums.l2, peaks.l2), times(sums.linf, peaks.l1))
            gradients["log_scale"] = Norms((), times(bound, 1 / a))
        return (jacobian.T(v, x.shape),), gradients

    return output, pullback


SUMMATIONS[spline] = lambda parameter, output: Summation(math.prod(output), exact=True)
