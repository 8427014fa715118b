"""The interval rules, by which boxes go through each operation."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dplip import nn as dn
from dplip.certificates.intervals.box import REMEDY, UNIT, Box, interval, linear_box
from dplip.nn.linf.distance import distance_bounds, finite
from dplip.rules import Call, refuse_module

T = torch.Tensor

# ------------------------------------------------------------------------------------------------ linear layers


@interval(nn.Linear, dn.BoundedLinear)
def linear(module: nn.Linear, x: Box) -> Box:
    return linear_box(module.weight, module.bias, x, F.linear)


@interval(F.linear)
def functional_linear(call: Call, input: Box, weight: Tensor, bias: Tensor | None = None) -> Box:
    return linear_box(weight, bias, input, F.linear)


@interval(nn.Conv1d, nn.Conv2d, dn.BoundedConv1d, dn.BoundedConv2d)
def convolution(module: nn.Conv1d | nn.Conv2d, x: Box) -> Box:
    return linear_box(module.weight, module.bias, x, lambda t, w: module._conv_forward(t, w, None))


@interval(nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
def average(module: nn.Module, x: Box) -> Box:
    terms = x.lower[0].numel()  # at least the number of terms in a window
    return x.map(module).widened(module(x.magnitude) * (UNIT * (terms + 2)) + 1e-37)


@interval(torch.sum, T.sum, torch.mean, T.mean)
def total(call: Call, input: Box, dim: Any, keepdim: bool = False) -> Box:
    terms = input.lower[0].numel()
    error = call.function(input.magnitude, dim, keepdim) * (UNIT * (terms + 2)) + 1e-37
    return input.map(lambda t: call.function(t, dim, keepdim)).widened(error)


@interval(dn.Center)
def center(module: dn.Center, x: Box) -> Box:
    # y_i = (1 - 1/n) x_i - (sum of the others) / n increases in x_i and decreases in each of the others.
    axes, n = tuple(range(1, x.lower.ndim)), x.lower[0].numel()

    def end(own: Tensor, others: Tensor) -> Tensor:
        return own * (1 - 1 / n) - (others.sum(axes, keepdim=True) - others) / n

    error = (x.magnitude + x.magnitude.mean(axes, keepdim=True)) * (UNIT * (n + 3)) + 1e-37
    return Box(end(x.lower, x.upper), end(x.upper, x.lower)).widened(error)


# ------------------------------------------------------------------------------------------------ distances


def _distance(module: Any, x: Box, omega: list[float], points: Tensor) -> Box:
    """Boxes of rows (..., features) to boxes of distances (..., points), before the bias."""
    if module.p != float("inf"):
        refuse_module(module, f"is relaxed (p={module.p:g}), which has no interval rule.", REMEDY)
    points = points.detach()
    # Ends are rounded outwards to the weight's type, since the model computes in it.
    ends = [t.reshape(-1, t.shape[-1]) for t in (x.lower, x.upper)]
    low, high = (
        finite(torch.nextafter(t.to(points.dtype), torch.full_like(t, side, dtype=points.dtype)))
        for t, side in zip(ends, (-torch.inf, torch.inf), strict=True)
    )
    weights = torch.tensor(omega, dtype=points.dtype, device=points.device)
    found = [t.double().reshape(*x.lower.shape[:-1], -1) for t in distance_bounds(low, high, points, weights)]
    box = Box(found[0], found[1])
    if len(omega) > 1:
        box = box.rounded(len(omega) + 2)
    return Box(-box.upper, -box.lower) if module.negate else box


def _shifted(module: Any, box: Box) -> Box:
    if module.bias is None:
        return box
    b = module.bias.detach().double()
    return box.map(lambda t: t + b).rounded()


@interval(dn.LInfDistance)
def linf_distance(module: dn.LInfDistance, x: Box) -> Box:
    return _shifted(module, _distance(module, x, [1.0], module.weight))


@interval(dn.SortNetLinear)
def sortnet_linear(module: dn.SortNetLinear, x: Box) -> Box:
    return _shifted(module, _distance(module, x, module.omega(), module.weight))


@interval(dn.LInfDistance2d)
def linf_distance_2d(module: dn.LInfDistance2d, x: Box) -> Box:
    height, width = (module.size(n) for n in x.lower.shape[2:])
    patches = x.map(module.patches)
    box = _shifted(module, _distance(module, patches, [1.0], module.weight.flatten(1)))
    return box.map(lambda t: t.mT.reshape(len(t), -1, height, width))


# ------------------------------------------------------------------------------------------------ elementwise


def _exact(module: nn.Module, x: Box) -> Box:
    return x.map(module)


interval(nn.ReLU, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, dn.Mirror)(_exact)
interval(nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.ZeroPad2d)(_exact)
interval(dn.RollChannels)(_exact)
# Each output is an order statistic, which does not decrease in any input.
interval(dn.GroupSort, dn.FullSort)(_exact)
interval(nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)(_exact)


@interval(nn.ReLU6, nn.Hardtanh, dn.Clamp)
def clamped(module: nn.Module, x: Box) -> Box:
    return x.map(module).rounded()  # the ends of the range are rounded to float32


@interval(nn.Tanh, nn.Sigmoid, nn.Hardsigmoid, nn.Softsign, nn.LogSigmoid, nn.SELU, nn.Tanhshrink, nn.Softshrink)
def rising(module: nn.Module, x: Box) -> Box:
    """The box of a smooth increasing function, with a few units of float32 error of the value, the argument or 1."""
    return x.map(module).widened((x.map(module).magnitude + x.magnitude + 1) * (4 * UNIT))


@interval(nn.LeakyReLU, nn.ELU, nn.CELU, nn.Softplus)
def sloped(module: Any, x: Box) -> Box:
    slope = getattr(module, "negative_slope", getattr(module, "alpha", getattr(module, "beta", 1.0)))
    if slope < 0:
        refuse_module(module, "is not monotone.", REMEDY)
    return rising(module, x)


@interval(F.relu, torch.relu, T.relu)
def relu(call: Call, input: Box, inplace: bool = False) -> Box:
    return input.map(torch.relu)


@interval(torch.tanh, T.tanh, torch.sigmoid, T.sigmoid, F.tanh, F.sigmoid)
def functional_rising(call: Call, input: Box) -> Box:
    return rising(call.function, input)


@interval(torch.clamp, T.clamp, torch.clip, T.clip)
def clamp(call: Call, input: Box, min: Any = None, max: Any = None) -> Box:
    return input.map(lambda t: torch.clamp(t, min, max)).rounded()


@interval(torch.abs, T.abs, abs)
def absolute(call: Call, input: Box) -> Box:
    return Box(nearest(input), input.magnitude)


def nearest(x: Box) -> Tensor:
    """The least absolute value of every entry."""
    return torch.maximum(x.lower, -x.upper).clamp_min(0)


@interval(dn.ScaledL2NormPool2d)
def l2_pool(module: dn.ScaledL2NormPool2d, x: Box) -> Box:
    return Box(module(nearest(x)), module(x.magnitude)).rounded(module.kernel_size**2 + 8)


@interval(dn.BallProjection)
def ball_projection(module: dn.BallProjection, x: Box) -> Box:
    # y = s x, where s = min(1, R / |x|) lies between its values for the largest and the least norm in the box.
    n = x.lower[0].numel()
    norms = [t.flatten(1).square().sum(1).sqrt() for t in (x.magnitude, nearest(x))]
    least, most = ((module.radius / t.clamp_min(module.radius)).reshape(-1, *[1] * (x.lower.ndim - 1)) for t in norms)
    products = [end * s for end in (x.lower, x.upper) for s in (least, most)]
    box = Box(torch.stack(products).amin(0), torch.stack(products).amax(0))
    return box.rounded(n + 32)  # covers the norm's rounding and the projection's inward slack


# ------------------------------------------------------------------------------------------------ arithmetic


@interval(dn.Shift)
def shift(module: dn.Shift, x: Box) -> Box:
    return x.map(lambda t: t - module.offset).widened((x.magnitude + abs(module.offset)) * UNIT)


@interval(dn.LogCompression)
def log_compression(module: dn.LogCompression, x: Box) -> Box:
    return x.map(module).rounded(8)


@interval(dn.PrivateMean)
def private_mean(module: dn.PrivateMean, x: Box) -> Box:
    return x.map(lambda t: t - module.mean.to(t)).widened((x.magnitude + module.mean.to(x.lower).abs()) * UNIT)


def _scaled(value: Any, factor: float) -> Any:
    if not isinstance(value, Box):
        return value.detach().double() * factor if isinstance(value, Tensor) else value * factor
    ends = (value.lower * factor, value.upper * factor)
    return Box(*ends) if factor >= 0 else Box(ends[1], ends[0])


def _sum(a: Any, b: Any) -> Box:
    (a_low, a_high), (b_low, b_high) = ((t.lower, t.upper) if isinstance(t, Box) else (t, t) for t in (a, b))
    sizes = [t.magnitude if isinstance(t, Box) else abs(t) for t in (a, b)]
    error = torch.as_tensor(sizes[0] + sizes[1]) * (2 * UNIT) + 1e-37
    return Box(a_low + b_low, a_high + b_high).widened(error)


@interval(operator.add, torch.add, T.add)
def add(call: Call, input: Any, other: Any, alpha: float = 1.0) -> Box:
    return _sum(_scaled(input, 1.0), _scaled(other, alpha))


@interval(operator.sub, torch.sub, torch.subtract, T.sub)
def sub(call: Call, input: Any, other: Any, alpha: float = 1.0) -> Box:
    return _sum(_scaled(input, 1.0), _scaled(other, -alpha))


@interval(operator.neg, torch.neg, T.neg)
def neg(call: Call, input: Box) -> Box:
    return Box(-input.upper, -input.lower)


@interval(operator.mul, torch.mul, torch.multiply, T.mul)
def mul(call: Call, input: Any, other: Any) -> Box:
    x, factor = (input, other) if isinstance(input, Box) else (other, input)
    factor = factor.detach().double() if isinstance(factor, Tensor) else factor
    ends = (x.lower * factor, x.upper * factor)
    return Box(torch.minimum(*ends), torch.maximum(*ends)).rounded()


@interval(operator.truediv, torch.div, torch.divide, torch.true_divide, T.div)
def div(call: Call, input: Box, other: Any) -> Box:
    return mul(call, input, 1.0 / (other.detach().double() if isinstance(other, Tensor) else other)).rounded()


@interval(torch.maximum, torch.minimum, T.maximum, T.minimum)
def extreme(call: Call, input: Box, other: Box) -> Box:
    return Box(call.function(input.lower, other.lower), call.function(input.upper, other.upper))


# ------------------------------------------------------------------------------------------------ shapes


@interval(T.view, T.reshape, torch.reshape, torch.flatten, T.flatten, T.unflatten, torch.unflatten)
@interval(T.unsqueeze, torch.unsqueeze, T.contiguous, T.clone, torch.clone, torch.permute, T.permute, torch.transpose)
@interval(T.transpose, torch.squeeze, T.squeeze, T.expand, operator.getitem, torch.narrow, T.narrow, torch.select)
@interval(
    T.flip, torch.flip, T.select, torch.amax, T.amax, torch.amin, T.amin, F.pixel_shuffle, F.pixel_unshuffle, F.pad,
    torch.roll, T.roll,
)  # fmt: skip
def moved(call: Call, input: Box, *arguments: Any, **named: Any) -> Box:
    return input.map(lambda t: call.function(t, *arguments, **named))


@interval(T.float, T.double)
def retyped(call: Call, input: Box) -> Box:
    return input.rounded()


@interval(torch.cat, torch.concat, torch.concatenate, torch.stack)
def cat(call: Call, tensors: Any, dim: int = 0) -> Box:
    parts = list(tensors)
    return Box(call.function([p.lower for p in parts], dim), call.function([p.upper for p in parts], dim))
