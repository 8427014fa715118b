"""How each operation rounds."""

from __future__ import annotations

import math
import operator
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dplip import nn as dn
from dplip.nn.scattering import BORDER, filters
from dplip.norms import Norms, matrix_norms
from dplip.norms.value_norms import Bound, times
from dplip.rounding.registry import EXACT, Roundings, T, rounding, summing

# ------------------------------------------------------------------------------------------------ linear operations


@rounding(nn.Linear, dn.BoundedLinear)
def linear(module: nn.Linear, x: Norms) -> Roundings:
    return summing(module.in_features + (module.bias is not None), module.out_features, summed=True)


@rounding(F.linear)
def functional_linear(call: Any, input: Norms, weight: Tensor, bias: Tensor | None = None) -> Roundings:
    return summing(weight.shape[1] + 1, weight.shape[0], summed=True)


@rounding(operator.matmul, torch.matmul, T.matmul, torch.mm, T.mm)
def product(call: Any, input: Norms, other: Tensor) -> Roundings:
    return summing(other.shape[0], other.shape[1], summed=True)


@rounding(nn.Conv1d, nn.Conv2d, dn.BoundedConv2d)
def convolution(module: nn.Conv1d | nn.Conv2d, x: Norms) -> Roundings:
    return _convolution(module.weight, module.groups)


@rounding(F.conv1d, F.conv2d, torch.conv1d, torch.conv2d)
def functional_convolution(
    call: Any, input: Norms, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Roundings:  # fmt: skip
    return _convolution(weight, groups)


def _convolution(weight: Tensor, groups: int) -> Roundings:
    return summing(weight[0].numel() + 1, weight.numel() // (groups * weight.shape[1]), summed=True)


@rounding(nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.MaxPool1d, nn.MaxPool2d)
@rounding(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)
def pool(module: nn.Module, x: Norms) -> Roundings:
    return _pool(x, getattr(module, "kernel_size", None), "Max" in type(module).__name__)


def _pool(x: Norms, taps: Any, largest: bool) -> Roundings:
    """Windows of at most the given size; of all places, where none is given. They may overlap."""
    axes = len(x.shape) - 1
    n = math.prod(x.shape[1:]) if taps is None else math.prod(taps) if isinstance(taps, tuple) else taps**axes
    return Roundings(back=n) if largest else summing(n + 1, n + 1)


@rounding(F.max_pool1d, torch.max_pool1d, F.max_pool2d, torch.max_pool2d)
def functional_max_pool(call: Any, input: Norms, kernel_size: Any, *rest: Any, **named: Any) -> Roundings:
    return _pool(input, kernel_size, True)


@rounding(F.avg_pool1d, F.avg_pool2d)
def functional_avg_pool(call: Any, input: Norms, kernel_size: Any, *rest: Any, **named: Any) -> Roundings:
    return _pool(input, kernel_size, False)


@rounding(F.adaptive_avg_pool1d, torch.adaptive_avg_pool1d, F.adaptive_avg_pool2d)
def functional_adaptive_pool(call: Any, input: Norms, output_size: Any) -> Roundings:
    return _pool(input, None, False)


@rounding(torch.sum, T.sum, torch.mean, T.mean)
def total(call: Any, input: Norms, dim: Any = None, keepdim: bool = False) -> Roundings:
    return summing(input.size / max(1, math.prod(call.shape)) + 1, 2.0)


@rounding(dn.Center)
def center(module: dn.Center, x: Norms) -> Roundings:
    # x_i less a mean of n, of which |J| |x| has all but one part in n.
    return Roundings(terms=2 * x.size + 8, output=1.0, back=2 * x.size + 8)


def _two_sided(rows: Tensor, columns: Tensor) -> float:
    """Of ``a x b^T``: the product with a (n terms an entry) is off in l2 by ``n/2 (| |a| | + |a|) |x|``, and so on."""
    a, b = (matrix_norms(t) for t in (rows, columns))
    sizes = [math.sqrt(m.one_one * m.inf_inf) for m in (a, b)]
    parts = [summing(t.shape[1], 0.0) for t in (rows, columns)]
    errors = [p.terms * s + float(p.output) * m.two_two for p, s, m in zip(parts, sizes, (a, b), strict=True)]
    return 1.01 * (errors[0] * b.two_two + errors[1] * a.two_two)


@rounding(dn.LowPass)
def low_pass(module: dn.LowPass, x: Norms) -> Roundings:
    return _transformed(x, [module], (*x.shape[:-2], module.keep, module.keep))


@rounding(dn.ChannelLowPass)
def channel_low_pass(module: dn.ChannelLowPass, x: Norms) -> Roundings:
    parts = [cast(dn.LowPass, m) for m in module.channels]
    return _transformed(x, parts, (sum(m.keep**2 for m in parts),))


def _transformed(x: Norms, parts: list[dn.LowPass], shape: tuple[int, ...]) -> Roundings:
    back = float(sum(2 * m.keep for m in parts) + 8)
    if any(m.rows.is_meta for m in parts):
        return Roundings(more=Norms(shape), back=back)
    worst = max(_two_sided(m.rows, m.columns) for m in parts)
    return Roundings(more=Norms(shape, l2=times(worst, x.l2)), back=back)


@rounding(dn.Whitening)
def whitening(module: dn.Whitening, x: Norms) -> Roundings:
    return summing(module.matrices.shape[1], module.matrices.shape[1])


@rounding(dn.OpponentColors)
def opponent_colors(module: dn.OpponentColors, x: Norms) -> Roundings:
    return Roundings(terms=6.0, back=6.0)


@rounding(dn.Scattering2d)
def scattering(module: dn.Scattering2d, x: Norms) -> Roundings:
    """Four Fourier transforms deep. One of n points along an axis, in stages of r_1 r_2 ... = n, each sqrt(r) times an
    isometry with sums of r products: of no more than ``2 (n + 8) sqrt n`` units in l2, relative to its result."""
    n = module.size + 2 * BORDER
    fine, coarse, mean, mean_of_half = filters(module.size, torch.float64, torch.device("cpu"))
    gain = max(1.0, *(float(f.abs().max()) for f in (fine, coarse)))
    local = max(1.0, *(float(torch.linalg.matrix_norm(m)) for m in (mean, mean_of_half)))
    depth = 4 * (2 * 2 * (n + 8) * math.sqrt(n) + 16) + 2 * n * local + 16
    shape = (81 * x.shape[0], module.size // 4, module.size // 4)
    # 81 maps, the product of at most two filters and a local mean along both axes each.
    return Roundings(more=Norms(shape, l2=times(9 * gain**2 * local**2 * depth, x.l2)), back=depth)


# ------------------------------------------------------------------------------------------------ arithmetic


def _copies(call: Any, *values: Any) -> float:
    size = math.prod(call.shape)
    return max([1.0, *(size / max(1, v.size) for v in values if isinstance(v, Norms))])


@rounding(operator.add, torch.add, T.add, operator.sub, torch.sub, torch.subtract, T.sub)
def add(call: Any, input: Any, other: Any, alpha: float = 1.0) -> Roundings:
    plain = alpha == 1.0 and all(isinstance(v, (Norms, Tensor)) for v in (input, other))  # no number is rounded
    return Roundings(
        terms=0.0 if plain else 2.0, output=1.0, back=_copies(call, input, other) - 1 + (0.0 if alpha == 1.0 else 2.0)
    )


@rounding(operator.mul, torch.mul, torch.multiply, T.mul, operator.truediv, torch.div, torch.divide)
@rounding(torch.true_divide, T.div)
def mul(call: Any, input: Any, other: Any) -> Roundings:
    # The number, its inverse and the product; each entry of the output is one of the input times a factor.
    return Roundings(output=4.0, back=4 + _copies(call, input, other))


@rounding(dn.Shift)
def shift(module: dn.Shift, x: Norms) -> Roundings:
    return Roundings(output=1.0, more=Norms(x.shape, linf=abs(module.offset)))


@rounding(dn.PrivateMean)
def private_mean(module: dn.PrivateMean, x: Norms) -> Roundings:
    return Roundings(output=1.0)


@rounding(T.expand)
def expand(call: Any, input: Norms, *sizes: Any) -> Roundings:
    return Roundings(back=_copies(call, input))


@rounding(torch.amax, T.amax, torch.amin, T.amin)
def extreme(call: Any, input: Norms, dim: Any = None, keepdim: bool = False) -> Roundings:
    return Roundings(back=2.0)


@rounding(torch.maximum, torch.minimum, T.maximum, T.minimum)
def larger(call: Any, input: Any, other: Any) -> Roundings:
    return Roundings(back=2.0)


# ------------------------------------------------------------------------------------------------ exact


def _moved(subject: Any, *arguments: Any, **named: Any) -> Roundings:
    """Entries that are moved, selected, negated or set to zero."""
    return EXACT


rounding(nn.Identity, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle)(_moved)
rounding(nn.ZeroPad1d, nn.ZeroPad2d, dn.Mirror, dn.GroupSort, dn.FullSort, nn.ReLU, F.relu, torch.relu)(_moved)
rounding(T.relu, torch.abs, T.abs, operator.abs, operator.neg, torch.neg, T.neg, F.pad, operator.getitem)(_moved)
rounding(T.view, T.reshape, torch.reshape, torch.flatten, T.flatten, T.unflatten, torch.unflatten)(_moved)
rounding(T.unsqueeze, torch.unsqueeze, T.contiguous, T.clone, torch.clone, torch.permute, T.permute)(_moved)
rounding(torch.transpose, T.transpose, torch.swapaxes, T.swapaxes, torch.squeeze, T.squeeze, torch.flip)(_moved)
rounding(T.flip, torch.narrow, T.narrow, torch.select, T.select, F.pixel_shuffle, F.pixel_unshuffle)(_moved)
rounding(torch.cat, torch.concat, torch.concatenate, torch.stack, torch.chunk, T.chunk, torch.split)(_moved)
rounding(T.split, T.unbind, torch.unbind, dn.GradientBall)(_moved)


@rounding(T.float, T.double)
def retyped(call: Any, input: Norms) -> Roundings:
    return Roundings(output=1.0, back=1.0, diagonal=True)


# ------------------------------------------------------------------------------------------------ elementwise


def _clamped(subject: Any, input: Norms, *ends: Any, **named: Any) -> Roundings:
    return Roundings(output=2.0, back=2.0, diagonal=True)  # the ends are rounded


rounding(nn.ReLU6, F.relu6, nn.Hardtanh, F.hardtanh, dn.Clamp, torch.clamp, T.clamp, torch.clip, T.clip)(_clamped)


def _scaled(subject: Any, input: Norms, *rest: Any, **named: Any) -> Roundings:
    """Entries times a rounded number, such as a slope."""
    return Roundings(output=4.0, back=4.0, diagonal=True)


rounding(nn.LeakyReLU, F.leaky_relu, nn.PReLU, nn.Dropout, nn.Dropout1d, nn.Dropout2d)(_scaled)
rounding(F.dropout, F.dropout1d, F.dropout2d)(_scaled)


def _smooth(subject: Any, input: Norms, *rest: Any, **named: Any) -> Roundings:
    """Elementary functions, some units from the value, the argument or one; bounded ones do not see the argument."""
    return Roundings(16.0, 16.0, Norms(input.shape, linf=16.0), back=64.0, diagonal=True)


def _bounded(subject: Any, input: Norms, *rest: Any, **named: Any) -> Roundings:
    return replace(_smooth(subject, input), terms=0.0)


rounding(nn.Tanhshrink, F.tanhshrink, nn.Softshrink, nn.Hardswish, F.hardswish, nn.LogSigmoid, F.logsigmoid)(_smooth)
rounding(nn.SiLU, F.silu, nn.Mish, F.mish, nn.SELU, F.selu, nn.ELU, F.elu, nn.CELU, nn.GELU, F.gelu)(_smooth)
rounding(nn.Tanh, F.tanh, torch.tanh, T.tanh, nn.Softsign, F.softsign, torch.sin, T.sin, torch.cos, T.cos)(_bounded)
rounding(nn.Sigmoid, F.sigmoid, torch.sigmoid, T.sigmoid, nn.Hardsigmoid, F.hardsigmoid)(_bounded)


@rounding(nn.Softplus)
def softplus(module: nn.Softplus, x: Norms) -> Roundings:
    return functional_softplus(module, x, module.beta, module.threshold)


@rounding(F.softplus)
def functional_softplus(subject: Any, input: Norms, beta: float = 1.0, threshold: float = 20.0) -> Roundings:
    # Where it turns linear it jumps, here and in what it is compared with.
    return replace(_smooth(subject, input), apart=2 * math.exp(-threshold) / abs(beta))


@rounding(nn.Softmax)
def softmax(module: nn.Softmax, x: Norms) -> Roundings:
    return functional_softmax(module, x, module.dim)


@rounding(F.softmax, torch.softmax, T.softmax)
def functional_softmax(subject: Any, input: Norms, dim: Any = None, *rest: Any, **named: Any) -> Roundings:
    # exp(-t) is off by t exp(-t) units, at most one, from the rounding of t, and a sum of n positive terms by n.
    return Roundings(output=input.size + 32.0, more=Norms(input.shape, linf=4.0), back=4.0 * input.size + 32)


@rounding(dn.LogCompression)
def log_compression(module: dn.LogCompression, x: Norms) -> Roundings:
    return Roundings(output=16.0, back=16.0, diagonal=True)


@rounding(dn.Householder)
def householder(module: dn.Householder, x: Norms) -> Roundings:
    return Roundings(terms=16.0, output=4.0, back=16.0)


@rounding(dn.LinearSpline, dn.CoefficientSpline)
def spline(module: Any, x: Norms) -> Roundings:
    # intercept + slope x, of a table in float32; a knot may be taken for its neighbour's piece within a few roundings
    # of the place, which are in units of the whole range. Beyond the range slopes are the tails'.
    with torch.no_grad():
        intercept, slope = module.pieces()
    size = (float(intercept.abs().max()) + 2 * float(slope.abs().max()) * module.range) / module.scale()
    tails = 16.0 if bool(module.tails.any()) else 0.0
    return Roundings(tails, 4.0, Norms(x.shape, linf=16 * size), back=16.0, diagonal=True)


# ------------------------------------------------------------------------------------------------ of whole examples


@rounding(dn.BallProjection)
def ball_projection(module: dn.BallProjection, x: Norms) -> Roundings:
    # The factor is off by the inward slack (4e-6), by the norm's allowance for n squares, and by their own roundings;
    # where the norm is inside even so, it is one, or next to it.
    slack = 1.5 * x.size + 84 + math.sqrt(x.size) * 2.0**-62 / (module.radius * 2.0**-24)
    inside = module.radius * (1 - 2 * slack * 2.0**-24)
    if isinstance(x.l2, Tensor):
        outside = torch.where(x.l2 < 1e18, torch.full_like(x.l2, slack), math.inf)
        output: Bound = torch.where(x.l2 <= inside, torch.full_like(x.l2, 4.0), outside)
    else:
        output = 4.0 if x.l2 <= inside else slack if x.l2 < 1e18 else math.inf
    return Roundings(output=output, back=4.0 * x.size + 128, held=True)


@rounding(dn.Frozen)
def frozen(module: dn.Frozen, x: Norms) -> Roundings:
    return Roundings(output=math.inf, held=True)  # nothing is known of what is inside


def _normalised(module: Any, x: Norms) -> Roundings:
    """(x - mean) / sqrt(variance + eps), of groups of at most all n entries, with the variance from squares.

    The mean is off by n units of the largest entry X, the variance by 4 n X^2: an entry, of at most sqrt n, by
    ``(n + 8) X / sqrt eps + (4 n X^2 / eps + 8) sqrt n``.
    """
    n, eps, top = x.size, module.eps, x.linf
    square = times(top, top)
    size = times(top, (n + 8) / math.sqrt(eps)) + (times(square, 4 * n / eps) + 8) * math.sqrt(n) if eps else math.inf
    return Roundings(more=Norms(x.shape, linf=size), back=4.0 * n + 64, held=True)


rounding(nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d)(_normalised)


@rounding(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def batch_norm(module: Any, x: Norms) -> Roundings:
    # a x + b with a = weight / sqrt(variance + eps), and b = bias - mean a, of two terms that may cancel: some eight
    # operations, in the one order or in that of (x - mean) a + bias.
    scale = (module.running_var.double() + module.eps).rsqrt()
    offset = module.bias.detach().double() if module.affine else torch.zeros_like(scale)
    scale = scale * module.weight.detach() if module.affine else scale
    parts = offset.abs() + (module.running_mean * scale).abs()
    more = Norms.of(parts.reshape(-1, *[1] * (len(x.shape) - 1))).repeat(x.shape) * 16.0
    return Roundings(16.0, 4.0, more, back=16.0, diagonal=True)


@rounding(dn.ScaledL2NormPool2d)
def l2_pool(module: dn.ScaledL2NormPool2d, x: Norms) -> Roundings:
    return Roundings(output=module.kernel_size**2 + 16.0, back=module.kernel_size**2 + 16.0)


@rounding(dn.LInfDistance, dn.LInfDistance2d, dn.SortNetLinear)
def distances(module: Any, x: Norms) -> Roundings:
    # Differences, a maximum and a bias; of a power mean (a sum of as many powers as features), or of ranks, also those.
    points, features = module.weight.shape[0], module.weight[0].numel()
    depth = 4.0 if math.isinf(module.p) else 4.0 * features + 64
    ranks = float(getattr(module, "top", 0))
    windows = getattr(module, "kernel_size", 1) ** 2
    return Roundings(depth + ranks, 4.0, back=points * windows + depth + ranks, one_hot=True)


@rounding(dn.TabularInput)
def tabular_input(module: dn.TabularInput, x: Norms) -> Roundings:
    # Numbers of at most one. Those of x alone do not count, however far a column lies from 0: x is cut exactly, and its
    # difference to low is off by a unit of itself, as are the width, both logarithms (that of 1 + a moves by at most as
    # many parts of itself as a does) and their quotient: 8 units of at most one. A block of g sums g entries of at most
    # one, and is left as it is up to 1e-6 beyond the simplex, here and in what it is compared with.
    group = max([0, *module.groups])
    return Roundings(0.0, 8.0, Norms(x.shape, linf=8.0 + 2.0 * group**2), back=4.0 * group + 32, apart=2e-6, held=True)
