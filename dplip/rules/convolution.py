"""Rules of convolutions in one and two dimensions, with zero or circular padding, stride, dilation and groups."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dplip.norms import Norms, convolution_norms
from dplip.rules.linear import by_tensor, outer
from dplip.rules.registry import SUMMATIONS, Call, Pullback, Summation, refuse_module, rule


def output_size(n: int, k: int, stride: int, padding: tuple[int, int], dilation: int) -> int:
    """The number of positions of a kernel of k taps along an axis of n entries."""
    return (n + sum(padding) - dilation * (k - 1) - 1) // stride + 1


def reads(n: int, k: int, stride: int, padding: tuple[int, int], dilation: int, circular: bool = False) -> int:
    """The largest number of (position, tap) pairs that read one entry of an axis, counted exactly."""
    out = output_size(n, k, stride, padding, dilation)
    read = np.arange(out)[:, None] * stride + np.arange(k)[None, :] * dilation - padding[0]
    read = read % n if circular else read[(read >= 0) & (read < n)]
    return int(np.bincount(read.ravel(), minlength=1).max()) if read.size else 0


@functools.cache
def most_reads(
    size: tuple[int, ...],
    taps: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
    circular: bool = False,
) -> int:
    """:func:`reads` over all axes."""
    axes = zip(size, taps, stride, padding, dilation, strict=True)
    return math.prod(reads(*axis, circular) for axis in axes)


def _convolution(
    x: Norms,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
    circular: bool = False,
) -> tuple[Norms, Pullback]:
    size = x.shape[-len(stride) :]
    taps = weight.shape[2:]
    axes = list(zip(size, taps, stride, padding, dilation, strict=True))
    shape = (weight.shape[0], *(output_size(*axis) for axis in axes))
    jacobian = convolution_norms(weight, size, stride, padding, dilation, groups, circular)
    # The kernel's gradient sums over positions: |v x_t^T|_F <= |v| |x_t| for tap t, and sum_t |x_t|^2 <= reads |x|^2.
    reuse = math.sqrt(most_reads(*map(tuple, (size, taps, stride, padding, dilation)), circular))
    output = jacobian(x, shape)
    if bias is not None:
        output = output + Norms.of(bias).reshape((shape[0], *[1] * len(size))).repeat(shape)

    def pullback(v: Norms) -> Any:
        positions = math.prod(shape[1:])
        gradients = {"weight": outer(x, v, tuple(weight.shape), reuse).summed(positions)}
        if bias is not None:
            gradients["bias"] = v.sum_to(tuple(bias.shape)).summed(positions)
        return (jacobian.T(v, x.shape),), gradients

    return output, pullback


def each(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(value) * (axes if len(value) == 1 else 1)


def _padding(padding: str | int | Sequence[int], taps: Sequence[int], dilation: Sequence[int]) -> list[tuple[int, int]]:
    if padding == "same":
        totals = [d * (k - 1) for k, d in zip(taps, dilation, strict=True)]
        return [(t // 2, t - t // 2) for t in totals]
    if isinstance(padding, str):
        return [(0, 0)] * len(taps)
    return [(p, p) for p in each(padding, len(taps))]


@rule(nn.Conv1d, nn.Conv2d)
def convolution(module: nn.Conv1d | nn.Conv2d, x: Norms) -> tuple[Norms, Pullback]:
    taps, stride, dilation = module.kernel_size, module.stride, module.dilation
    padding = _padding(module.padding, taps, dilation)
    circular = module.padding_mode == "circular" and any(sum(p) for p in padding)
    if module.padding_mode not in ("zeros", "circular"):
        refuse_module(
            module,
            "copies border entries more than once, so its norm is not bounded by its kernel's.",
            "Use padding_mode='zeros' or 'circular'.",
        )
    if len(x.shape) != len(taps) + 1:
        refuse_module(module, f"is given one example of shape {x.shape}.", "Give it (channels, *spatial).")
    if circular:
        for n, k, s, p, d in zip(x.shape[1:], taps, stride, padding, dilation, strict=True):
            if sum(p) > d * (k - 1) or d * (k - 1) + 1 > n or n % s:
                refuse_module(
                    module,
                    f"wraps around an axis of {n} entries more than once.",
                    "Use padding <= (kernel_size - 1) / 2, a kernel within the input and a stride that divides it.",
                )
    return _convolution(x, module.weight, module.bias, stride, padding, dilation, module.groups, circular)


@rule(F.conv1d, F.conv2d, torch.conv1d, torch.conv2d)
def functional_convolution(
    call: Call,
    input: Norms,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> tuple[Norms, Pullback]:
    if not isinstance(input, Norms) or isinstance(weight, Norms) or isinstance(bias, Norms):
        call.refuse("multiplies two values that depend on the example.", "Use a parameter or buffer as the weight.")
    taps = weight.shape[2:]
    axes = len(taps)
    dilations = each(dilation, axes)
    pads = _padding(padding, taps, dilations)
    return by_tensor(_convolution(input, weight, bias, each(stride, axes), pads, dilations, groups), weight, bias)


SUMMATIONS[functional_convolution] = lambda parameter, output: Summation(math.prod(output[1:]))
