"""Rules of average and maximum pooling in one and two dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from dplip.norms import Norms, OperatorNorms
from dplip.rules.convolution import each, output_size, reads
from dplip.rules.registry import Call, Pullback, refuse_module, rule, through


def window(
    x: Norms, taps: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, ...], int]:
    """The shape after pooling, and the largest number of windows that hold one entry."""
    axes = [
        (n, k, s, (p, p), d)
        for n, k, s, p, d in zip(x.shape[-len(taps) :], taps, stride, padding, dilation, strict=True)
    ]
    shape = (*x.shape[: -len(taps)], *(output_size(*axis) for axis in axes))
    return shape, math.prod(reads(*axis) for axis in axes)


def _max_pool(
    refused: Any, x: Norms, taps: Any, stride: Any, padding: Any, dilation: Any, ceil: bool, indices: bool, axes: int
) -> tuple[Norms, Pullback]:
    if ceil or indices:
        refused("uses ceil_mode or return_indices.", "Leave both off.")
    taps, strides, pads, gaps = (each(v, axes) for v in (taps, stride or taps, padding, dilation))
    shape, held = window(x, taps, strides, pads, gaps)
    for n, k, s, p, d in zip(x.shape[-axes:], taps, strides, pads, gaps, strict=True):
        if not all(any(0 <= o * s + i * d - p < n for i in range(k)) for o in range(output_size(n, k, s, (p, p), d))):
            refused("has windows of padding alone, whose maximum is -inf.", "Use less padding or dilation.")
    # Rows of the Jacobian are one-hot; an entry is the maximum of at most `held` windows.
    wins = math.sqrt(held)
    jacobian = OperatorNorms(one_one=held, one_two=wins, one_inf=1.0, two_two=wins, two_inf=1.0, inf_inf=1.0)
    return through(jacobian, x, shape)


def _avg_pool(
    refused: Any, x: Norms, taps: Any, stride: Any, padding: Any, ceil: bool, include: bool, divisor: Any, axes: int
) -> tuple[Norms, Pullback]:
    k, pad = each(taps, axes), each(padding, axes)
    if ceil or divisor or (any(pad) and not include):
        refused(
            "divides windows by different numbers (ceil_mode, divisor_override, count_include_pad=False).",
            "Leave these at their defaults.",
        )
    shape, held = window(x, k, each(stride or taps, axes), pad, (1,) * axes)
    n = math.prod(k)
    return through(_averages(n, held), x, shape)


def _averages(n: int, held: int) -> OperatorNorms:
    """The norms of means over windows of n entries, each in at most ``held`` windows; exact for disjoint windows."""
    return OperatorNorms(
        one_one=held / n, one_two=math.sqrt(held) / n, one_inf=1 / n, two_inf=1 / math.sqrt(n), inf_inf=1.0
    )


@rule(nn.MaxPool1d, nn.MaxPool2d)
def max_pool(module: nn.MaxPool2d, x: Norms) -> tuple[Norms, Pullback]:
    m, axes = module, 1 if isinstance(module, nn.MaxPool1d) else 2
    refused = partial(refuse_module, m)
    return _max_pool(refused, x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices, axes)


@rule(nn.AvgPool1d, nn.AvgPool2d)
def avg_pool(module: nn.AvgPool2d, x: Norms) -> tuple[Norms, Pullback]:
    m, axes = module, 1 if isinstance(module, nn.AvgPool1d) else 2
    refused, divisor = partial(refuse_module, m), getattr(m, "divisor_override", None)
    return _avg_pool(refused, x, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, divisor, axes)


@rule(F.max_pool1d, torch.max_pool1d, F.max_pool2d, torch.max_pool2d)
def functional_max_pool(
    call: Call,
    input: Norms,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Norms, Pullback]:
    axes = len(input.shape) - 1
    return _max_pool(call.refuse, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices, axes)


@rule(F.avg_pool1d, F.avg_pool2d)
def functional_avg_pool(
    call: Call,
    input: Norms,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> tuple[Norms, Pullback]:
    axes = len(input.shape) - 1
    return _avg_pool(
        call.refuse, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, axes
    )


def _adaptive(refused: Any, x: Norms, shape: tuple[int, ...], average: bool) -> tuple[Norms, Pullback]:
    if len(x.shape) not in (2, 3):
        refused(f"is given one example of shape {x.shape}.", "Give it (channels, *spatial).")
    axes = list(zip(x.shape[1:], shape[1:], strict=True))
    if any(n % m for n, m in axes):
        refused(f"makes uneven windows of {x.shape} for {shape}.", "Use an output size that divides the input's.")
    n = math.prod(n // m for n, m in axes)
    jacobian = _averages(n, 1) if average else OperatorNorms.diagonal(1.0)
    return through(jacobian, x, shape)


@rule(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)
def adaptive_pool(module: Any, x: Norms) -> tuple[Norms, Pullback]:
    refused = partial(refuse_module, module)
    average = isinstance(module, (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d))
    if getattr(module, "return_indices", False):
        refused("returns indices.", "Leave return_indices off.")
    if len(x.shape) != (2 if isinstance(module, (nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d)) else 3):
        refused(f"is given one example of shape {x.shape}.", "Give it (channels, *spatial).")
    shape = tuple(module(torch.empty(1, *x.shape)).shape[1:])
    return _adaptive(refused, x, shape, average)


@rule(F.adaptive_avg_pool1d, torch.adaptive_avg_pool1d, F.adaptive_avg_pool2d)
def functional_adaptive_pool(call: Call, input: Norms, output_size: Any) -> tuple[Norms, Pullback]:
    if len(input.shape) != (3 if call.function is F.adaptive_avg_pool2d else 2):
        call.refuse(f"is given one example of shape {input.shape}.", "Give it (channels, *spatial).")
    return _adaptive(call.refuse, input, call.shape, average=True)
