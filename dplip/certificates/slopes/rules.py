"""The slope rules, by which intervals of cotangent entries go back through each operation."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dplip import nn as dn
from dplip.certificates.slopes.registry import INTERVAL_SLACK, Interval, Slope, slope_rule
from dplip.norms import Norms

T = torch.Tensor


def _through_matrix(weight: Tensor, v: Interval) -> list[Interval]:
    w = weight.detach().double().cpu()
    positive, negative = w.clamp_min(0), w.clamp_max(0)
    lower, upper = v
    # A sum is off by a part of the sum of its terms' magnitudes, so one of terms >= 0 stays >= 0.
    below = (lower.abs() @ positive - upper.abs() @ negative) * INTERVAL_SLACK
    above = (upper.abs() @ positive - lower.abs() @ negative) * INTERVAL_SLACK
    return [(lower @ positive + upper @ negative - below, upper @ positive + lower @ negative + above)]


@slope_rule(nn.Linear, dn.BoundedLinear)
def linear(slope: Slope, v: Interval, x: Norms) -> list[Interval]:
    return _through_matrix(slope.subject.weight, v)


@slope_rule(F.linear)
def functional_linear(slope: Slope, v: Interval, input: Any, weight: Tensor, bias: Any = None) -> list[Interval]:
    return _through_matrix(weight, v)


def _scaled(v: Interval, factor: Any) -> Interval:
    factor = factor.detach().double().cpu() if isinstance(factor, Tensor) else float(factor)
    a, b = v[0] * factor, v[1] * factor
    return torch.minimum(a, b), torch.maximum(a, b)


def _same(slope: Slope, v: Interval) -> bool:
    """Whether no input was broadcast."""
    return all(shape == tuple(v[0].shape[1:]) for shape in slope.shapes)


@slope_rule(operator.add, torch.add, T.add)
def add(slope: Slope, v: Interval, input: Any, other: Any, alpha: float = 1.0) -> list[Interval] | None:
    if not _same(slope, v):
        return None
    return [_scaled(v, k) for k, part in ((1.0, input), (alpha, other)) if isinstance(part, Norms)]


@slope_rule(operator.sub, torch.sub, torch.subtract, T.sub)
def sub(slope: Slope, v: Interval, input: Any, other: Any, alpha: float = 1.0) -> list[Interval] | None:
    return add(slope, v, input, other, -alpha)


@slope_rule(operator.neg, torch.neg, T.neg)
def neg(slope: Slope, v: Interval, input: Norms) -> list[Interval]:
    return [_scaled(v, -1.0)]


@slope_rule(operator.mul, torch.mul, torch.multiply, T.mul)
def mul(slope: Slope, v: Interval, input: Any, other: Any) -> list[Interval] | None:
    factor = other if isinstance(input, Norms) else input
    if not _same(slope, v) or (isinstance(factor, Tensor) and factor.ndim >= v[0].ndim):
        return None
    return [_scaled(v, factor)]


@slope_rule(operator.truediv, torch.div, torch.divide, torch.true_divide, T.div)
def div(slope: Slope, v: Interval, input: Any, other: Any) -> list[Interval] | None:
    return mul(slope, v, input, 1.0 / (other.detach().double() if isinstance(other, Tensor) else other))


def _flatter(v: Interval, least: Any, most: Any) -> Interval:
    """The interval times a slope between two nonnegative numbers."""
    lower, upper = v
    return torch.minimum(lower * least, lower * most), torch.maximum(upper * least, upper * most)


@slope_rule(nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Tanh, nn.Sigmoid, nn.Hardsigmoid, nn.Softsign, nn.LogSigmoid)
@slope_rule(nn.Tanhshrink, nn.Softshrink, F.relu, torch.relu, T.relu, F.relu6, torch.tanh, T.tanh, F.tanh)
@slope_rule(torch.sigmoid, T.sigmoid, F.sigmoid, F.hardsigmoid, F.softsign, F.logsigmoid)
def rising(slope: Slope, v: Interval, input: Norms) -> list[Interval]:
    """The rule of nondecreasing elementwise functions: the slope lies between 0 and the largest of the norm rule."""
    return [_flatter(v, 0.0, slope.steepest())]


@slope_rule(nn.LeakyReLU, nn.ELU, nn.CELU, nn.Softplus)
def shaped(slope: Slope, v: Interval, input: Norms) -> list[Interval] | None:
    m = slope.subject
    shape = getattr(m, "negative_slope", getattr(m, "alpha", getattr(m, "beta", -1.0)))
    return rising(slope, v, input) if shape >= 0 else None


@slope_rule(dn.Clamp)
def clamp(slope: Slope, v: Interval, x: Norms) -> list[Interval]:
    return [v] if slope.inside else rising(slope, v, x)


@slope_rule(torch.clamp, T.clamp, torch.clip, T.clip)
def functional_clamp(slope: Slope, v: Interval, input: Norms, min: Any = None, max: Any = None) -> list[Interval]:
    return clamp(slope, v, input)


@slope_rule(dn.Shift, dn.PrivateMean)
def shift(slope: Slope, v: Interval, x: Norms) -> list[Interval]:
    return [v]


@slope_rule(dn.GroupSort)
def group_sort(slope: Slope, v: Interval, x: Norms) -> list[Interval]:
    # An entry of the input goes to some entry of its group (at ties, to a mean of them).
    m = slope.subject
    axis = m.dim if m.dim >= 0 else v[0].ndim + m.dim
    return [(_spread(v[0], axis, m.group_size, torch.amin), _spread(v[1], axis, m.group_size, torch.amax))]


def _spread(t: Tensor, axis: int, size: int, end: Any) -> Tensor:
    groups = t.unflatten(axis, (-1, size))
    return end(groups, axis + 1, keepdim=True).expand_as(groups).flatten(axis, axis + 1)


@slope_rule(dn.FullSort)
def full_sort(slope: Slope, v: Interval, x: Norms) -> list[Interval]:
    axis = slope.subject.dim
    return [(torch.amin(v[0], axis, True).expand_as(v[0]), torch.amax(v[1], axis, True).expand_as(v[1]))]


@slope_rule(nn.Identity, nn.Flatten, nn.Unflatten, T.view, T.reshape, torch.reshape, torch.flatten, T.flatten)
@slope_rule(T.unflatten, torch.unflatten, T.unsqueeze, torch.unsqueeze, T.contiguous, T.clone, torch.clone)
@slope_rule(T.float, T.double, torch.squeeze, T.squeeze)
def regrouped(slope: Slope, v: Interval, input: Norms, *sizes: Any, **named: Any) -> list[Interval]:
    return [(v[0].reshape(-1, *slope.shapes[0]), v[1].reshape(-1, *slope.shapes[0]))]


@slope_rule(torch.roll, T.roll)
def roll(slope: Slope, v: Interval, input: Norms, shifts: Any, dims: Any) -> list[Interval]:
    # Axes count from the batch, in whose place v has the outputs.
    back = tuple(-s for s in shifts) if isinstance(shifts, (tuple, list)) else -shifts
    return [(torch.roll(v[0], back, dims), torch.roll(v[1], back, dims))]


@slope_rule(torch.flip, T.flip)
def flip(slope: Slope, v: Interval, input: Norms, *dims: Any) -> list[Interval]:
    return [(v[0].flip(*dims), v[1].flip(*dims))]


@slope_rule(dn.TabularInput)
def tabular_input(slope: Slope, v: Interval, x: Norms) -> list[Interval]:
    module: dn.TabularInput = slope.subject
    least, most = module.slopes()
    n = len(least)
    lower, upper = _flatter((v[0][:, :n], v[1][:, :n]), least if slope.inside else 0.0, most)
    ends = [(lower, upper)]
    if module.groups:
        for low, high in zip(v[0][:, n:].split(module.groups, 1), v[1][:, n:].split(module.groups, 1), strict=True):
            # The cotangent of entry j of a block is v_j, 0, or v_j minus a mean over entries that include j, which is
            # a share in [0, 1) of v_j minus a mean of the others.
            down = torch.minimum(low, low - high.amax(1, keepdim=True)).clamp_max(0)
            up = torch.maximum(high, high - low.amin(1, keepdim=True)).clamp_min(0)
            ends.append((down, up))
    return [(torch.cat([e[0] for e in ends], 1), torch.cat([e[1] for e in ends], 1))]
