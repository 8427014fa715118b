"""Rounding rules of linear layers, convolutions, pooling and fixed transforms."""

from __future__ import annotations

import math
import operator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dplip import nn as dn
from dplip.nn.scattering import BORDER, filters
from dplip.norms import Norms, matrix_norms, times
from dplip.rounding.registry import Roundings, T, rounding, summing


@rounding(nn.Linear, dn.BoundedLinear)
def linear(module: nn.Linear, x: Norms) -> Roundings:
    return summing(module.in_features + (module.bias is not None), module.out_features, summed=True)


@rounding(F.linear)
def functional_linear(call: Any, input: Norms, weight: Tensor, bias: Tensor | None = None) -> Roundings:
    return summing(weight.shape[1] + 1, weight.shape[0], summed=True)


@rounding(operator.matmul, torch.matmul, T.matmul, torch.mm, T.mm)
def product(call: Any, input: Norms, other: Tensor) -> Roundings:
    return summing(other.shape[0], other.shape[1], summed=True)


@rounding(nn.Conv1d, nn.Conv2d, dn.BoundedConv1d, dn.BoundedConv2d)
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
    """The roundings of pooling over windows of at most ``taps`` entries (None: all places), which may overlap."""
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
    # x_i minus a mean of n entries, whose magnitudes |J| |x| bounds up to one part in n.
    return Roundings(terms=2 * x.size + 8, output=1.0, back=2 * x.size + 8)


def _two_sided(rows: Tensor, columns: Tensor) -> float:
    """The l2 error of ``a x b^T`` per |x|: a product with a, of n terms, is off by ``n/2 (| |a| | + |a|) |x|``."""
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
    """The roundings of four Fourier transforms in sequence.

    Proof: along an axis of n = r_1 r_2 ... points, each stage is sqrt(r_i) times an isometry with sums of r_i products,
    so a transform is off by at most ``2 (n + 8) sqrt n`` units in l2, relative to its result.
    """
    n = module.size + 2 * BORDER
    fine, coarse, mean, mean_of_half = filters(module.size, torch.float64, torch.device("cpu"))
    gain = max(1.0, *(float(f.abs().max()) for f in (fine, coarse)))
    local = max(1.0, *(float(torch.linalg.matrix_norm(m)) for m in (mean, mean_of_half)))
    depth = 4 * (2 * 2 * (n + 8) * math.sqrt(n) + 16) + 2 * n * local + 16
    shape = (81 * x.shape[0], module.size // 4, module.size // 4)
    # Each of the 81 maps is a product of at most two filters and a local mean along both axes.
    return Roundings(more=Norms(shape, l2=times(9 * gain**2 * local**2 * depth, x.l2)), back=depth)
