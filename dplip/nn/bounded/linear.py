"""Linear layers that bound each example's gradient of the weight, within one ordinary backward pass.

An example's gradient of a linear layer's weight is ``sum_t v_t x_t^T`` over its positions t, of cotangents v_t and
inputs x_t. In training mode each example's is scaled down to the radius before the sum over examples, by its exact
norm. The bound needs neither a bound of the input nor an operator norm. The layers below get the true cotangent.

The way to the norm is chosen by the shapes alone:

- *One position.* The norm of ``v x^T`` is ``|v| |x|``, two norms that cost next to nothing. The rows are scaled, and
  one product sums them.
- *Few positions.* The same with the norm from two Gram matrices, :func:`norm_of_sum`.
- *Many positions.* The example's gradient is formed by itself, which costs no more than the one product for all; its
  norm is that of the numbers found, :func:`sum_into_radius`. Gradients of a few examples are in memory at a time.

Under ``torch.autocast`` the layer's output and the cotangent for the layers below are products in half precision; x and
v are converted to the weight's type, exactly, before their product (see :mod:`dplip.sensitivities.enforced`).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dplip.nn.bounded.convert import bounds
from dplip.nn.bounded.enforcing import (
    LARGEST_NORM,
    Radius,
    Summed,
    Within,
    bounded_rule,
    checked_radius,
    known,
    norms_of_positions,
    nothing,
    of_bias,
    sent,
    some_of,
    sum_into_radius,
)
from dplip.nn.bounded.slack import slack_of
from dplip.nn.gradient_ball import ROW_SLACK, scale_into
from dplip.nn.sums import SPREAD, of_matrices, of_products
from dplip.norms import Norms
from dplip.rules import ENFORCED, SUMMATIONS, Pullback, Summation, rule
from dplip.rules.linear import AFFINE, linear
from dplip.separation import examples_first

GRAM = 8
"""Products that take as long as an entry of a gradient takes to be written, read and scaled."""


@bounds(nn.Linear)
class BoundedLinear(nn.Linear):
    """``nn.Linear`` that bounds each example's gradient of its weight, and of its bias, by ``radius`` in l2.

    Args:
        in_features, out_features, bias: as for ``nn.Linear``; the keys of the ``state_dict`` are the same.
        radius: the largest l2 norm of one example's gradient of the weight; likewise of the bias.

    Guarantee: in training mode the bound holds for every input, cotangent and weight (examples that are not finite, or
    of a norm beyond 1e30, contribute nothing). In evaluation mode the layer is ``nn.Linear``.
    Source: clipping by layer with the norm of an outer product, Goodfellow, 2015, arXiv 1510.01799.
    """

    slack: Tensor | None = None
    """Where slack coordinates arrive (:mod:`dplip.nn.bounded.slack`), if the radius follows the gradients."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, radius: float = 1.0) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.radius = checked_radius(radius)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.linear(x, self.weight, self.bias)
        # Of a constant it is torch's: what reads the graph refuses it, unless it is detached.
        return examples_first(self._bounded, x, constant=super().forward)

    def _bounded(self, x: Tensor) -> Tensor:
        return LinearGradients.apply(x, self.weight, self.bias, None, self.radius, self.slack)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, radius={self.radius:g}"


class LinearGradients(Summed):
    """A linear map, whose node bounds the gradients of weight and bias."""

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        output: Tensor | None,
        radius: Radius | None,
        slack: Tensor | None,
    ) -> Tensor:
        return F.linear(x, weight, bias) if output is None else output

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        Summed.setup_context(ctx, inputs, output)
        if isinstance(output, Tensor):  # and not a symbol of torch.fx, which goes into a subclass without a rule
            ctx.terms = summation(tuple(inputs[1].shape), tuple(output.shape[1:])).terms

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias, _, _, for_slack = ctx.needs_input_grad
        gradient = bias = below = slack = None
        told: list[Tensor] | None = [] if for_slack else None
        with torch.autocast(v.device.type, enabled=False):
            if for_weight or for_bias:
                # In the weight's type, which has as many digits: (examples, positions, features).
                positions = math.prod(v.shape[1:-1])
                given, back = (t.to(weight.dtype).reshape(len(t), positions, t.shape[-1]) for t in (x, v))
                lengths = None if ctx.radius is None else norms_of_positions(back)
                product = partial(of_weight, given, back, lengths=lengths)
                gradient = sent(ctx, 1, product, told) if for_weight else None
                # The slack belongs to the weight, or to the bias beside a frozen one.
                shift = partial(of_bias, back, lengths=lengths)
                bias = sent(ctx, 2, shift, None if for_weight else told) if for_bias else None
                slack = slack_of(ctx.radius, told) if told else None
            below = v @ weight.to(v.dtype) if for_x else None
        return below, gradient, bias, None, None, slack


def by_itself(positions: int, inputs: int, outputs: int) -> bool:
    """Whether each example's gradient is formed by itself; else the rows of all examples are summed together.

    Beside the products of the sum, which both take, that is inputs * outputs entries against the
    positions^2 (inputs + outputs) products of Gram matrices.
    """
    return positions > 1 and positions**2 * (inputs + outputs) > GRAM * inputs * outputs


def of_weight(
    x: Tensor, v: Tensor, radius: Within, told: list[Tensor] | None = None, lengths: Tensor | None = None
) -> Tensor:
    """The sum over examples of the weight's gradients, each scaled into the radius (None: as it is).

    ``told`` gets bounds of their norms before scaling; ``lengths`` are the norms of v, where they are known.
    """
    formed = by_itself(x.shape[1], x.shape[2], v.shape[2])
    if radius is not None:
        sizes = norms_of_positions(x)
        lengths = norms_of_positions(v) if lengths is None else lengths
    if formed:
        most = None if lengths is None else (sizes * lengths).sum(1)

        def total(each: Tensor, some: slice) -> Tensor:
            return sum_into_radius(each, some_of(radius, some), None if most is None else most[some], told)

        return of_matrices(v, x, total)
    if radius is not None and lengths is not None:
        x, v, norms = _scaled_rows(x, v, sizes, lengths, radius)
        if told is not None:
            told.append(norms)
        if nothing(radius):
            return v.new_zeros(())
    return of_products(v.flatten(0, 1), x.flatten(0, 1))


def _scaled_rows(
    x: Tensor, v: Tensor, sizes: Tensor, lengths: Tensor, radius: float | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs and cotangents of which one is scaled, so that each example's gradient lies within the radius; its norm.

    The scaled rows have entries off by one rounding, which moves the sum by that share of the magnitudes of its terms,
    at most ``SPREAD`` radii: within ``ROW_SLACK``.
    """
    kept = (torch.maximum(sizes, lengths) <= LARGEST_NORM).all(1)  # False for NaN
    norms = (sizes * lengths).sum(1)
    # The scaling is skipped only where it would change no row, so that a row never depends on the others.
    if known(kept & (norms <= radius * (1 - ROW_SLACK))):
        return x, v, norms
    if x.shape[1] > 1:
        norms = norm_of_sum(x, v, sizes, lengths)
    # The norms are those before an example is left out: a copy may lie otherwise in memory, and round otherwise in all.
    if not known(kept):
        x, v = (torch.where(kept[:, None, None], t, 0.0) for t in (x, v))
        norms = torch.where(kept, norms, 0.0)
    if x.numel() < v.numel():  # scale the smaller of the two tensors
        return x * scale_into(radius, norms, x), v, norms
    return x, v * scale_into(radius, norms, v), norms


def norm_of_sum(x: Tensor, v: Tensor, sizes: Tensor, lengths: Tensor) -> Tensor:
    """Per example, a bound of ``|sum_t v_t x_t^T|`` and of 1 / ``SPREAD`` of ``M = sum_t |v_t| |x_t|``, in float64.

    The square of the norm is ``sum_ts (x_t . x_s) (v_t . v_s)``, from two Gram matrices.

    Proof of the rounding, with u that of the type, D and P the lengths of x_t and v_t. A computed ``x_t . x_s`` is off
    by at most D u |x_t| |x_s|, in any order (Jeannerod and Rump, 2013), and by D times the smallest normal number where
    products underflow; a ``v_t . v_s`` likewise. So the product of the two is off by at most (D u + P u + D u P u)
    |x_t| |x_s| |v_t| |v_s|, and these add up to M^2 over t and s. By Cauchy-Schwarz over t, underflows add at most T
    times the smallest number times (D sum_t |v_t|^2 + P sum_t |x_t|^2), twice that with their products, as
    ``row_norms`` are at least the root of D times that number. The product and the sum of T^2 terms are computed in
    float64: off by T^2 + 1 of its roundings of M^2. What overflows is not finite, and M, which is a bound too, is
    taken. The sums written here are in float64, whose rounding ``ROW_SLACK`` covers.

    The sum over a batch rounds in proportion to M, not to the norm, which is why M / ``SPREAD`` is bounded as well.
    """
    positions, d, p = x.shape[1], x.shape[2], v.shape[2]
    u, tiny = torch.finfo(x.dtype).eps / 2, torch.finfo(x.dtype).tiny
    most = (sizes * lengths).sum(1)
    square = ((x @ x.mT).double() * (v @ v.mT).double()).sum((1, 2))
    rounding = (d + p + d * p * u + 1) * u + (positions**2 + 2) * torch.finfo(torch.float64).eps
    under = 2 * positions * tiny * (d * lengths.square().sum(1) + p * sizes.square().sum(1))
    square = torch.where(square.isfinite(), square, math.inf).clamp_min(0) + rounding * most.square() + under
    return torch.minimum(most, torch.maximum(square.sqrt(), most / SPREAD))


@rule(BoundedLinear)
def bounded_linear(module: BoundedLinear, x: Norms) -> tuple[Norms, Pullback]:
    return bounded_rule(linear, module, x)


AFFINE.add(bounded_linear)
ENFORCED.add(bounded_linear)


def summation(parameter: tuple[int, ...], output: tuple[int, ...]) -> Summation:
    """The positions of an example are summed before the examples, but for few rows of a weight."""
    positions = math.prod(output[:-1])
    rows = len(parameter) == 2 and not by_itself(positions, parameter[1], parameter[0])
    return Summation(positions if rows else 1, blocked=True)


SUMMATIONS[linear] = SUMMATIONS[bounded_linear] = summation
