"""Rules of normalisation of one example by its own statistics, which bounds the output for every input."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from dplip.norms import REDUCTION_SLACK, Norms, OperatorNorms, below, largest, root, times
from dplip.rules.registry import Pullback, refuse_module, rule, through

CANCELLATION = 2.0**-18
"""The error of a float32 variance relative to the square of the largest entry: 64 roundings; observed 8."""


def _normalised(x: Norms, group: int, eps: float) -> tuple[Norms, Pullback]:
    """The rule of groups of ``group`` entries that are shifted to mean 0 and divided by sqrt(variance + eps).

    Proof: a group z has ``|z|_2^2 = n var / (var + eps) <= n`` and, since its mean is 0, ``|z_i| <= sqrt(n - 1)``. The
    Jacobian is ``(I - 11^T/n - zz^T/n) / s`` with ``s >= sqrt(eps)`` and a contraction in the brackets.

    In float32 the variance of a large, nearly constant group cancels: it is off by up to about ``2^-18 |x|_inf^2``, so
    the output's square grows by that over eps. The float32 output has no bound without a bound on x.
    """
    # Squares beyond 1e30 overflow, so larger entries have no bound.
    known = below(x.linf, 1e15)
    cancelled = root(1.0 + times(times(known, known), CANCELLATION / eps if eps > 0 else math.inf))
    output = Norms(x.shape, l2=times(cancelled, math.sqrt(x.size)), linf=times(cancelled, math.sqrt(group - 1)))
    jacobian = OperatorNorms(two_two=1 / math.sqrt(eps) if eps > 0 else math.inf)
    return output, lambda v: ((jacobian.T(v, x.shape) * times(cancelled, cancelled),), {})


def _refuse_affine(module: nn.Module, affine: bool, keyword: str) -> None:
    if affine:
        refuse_module(module, "has a learnable scale and shift.", f"Build it with {keyword}=False.")


@rule(nn.LayerNorm)
def layer_norm(module: nn.LayerNorm, x: Norms) -> tuple[Norms, Pullback]:
    _refuse_affine(module, module.elementwise_affine, "elementwise_affine")
    return _normalised(x, math.prod(module.normalized_shape), module.eps)


@rule(nn.GroupNorm)
def group_norm(module: nn.GroupNorm, x: Norms) -> tuple[Norms, Pullback]:
    _refuse_affine(module, module.affine, "affine")
    return _normalised(x, x.size // module.num_groups, module.eps)


@rule(nn.InstanceNorm1d, nn.InstanceNorm2d)
def instance_norm(module: Any, x: Norms) -> tuple[Norms, Pullback]:
    _refuse_affine(module, module.affine, "affine")
    if len(x.shape) != (2 if isinstance(module, nn.InstanceNorm1d) else 3):
        refuse_module(module, f"is given one example of shape {x.shape}.", "Give it (channels, *spatial).")
    if module.track_running_stats:
        refuse_module(module, "keeps statistics of the batch.", "Build it with track_running_stats=False.")
    return _normalised(x, math.prod(x.shape[1:]), module.eps)


@rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def batch_norm(module: Any, x: Norms) -> tuple[Norms, Pullback]:
    """The rule in evaluation mode: each channel is multiplied by a constant and shifted. The trace refuses training."""
    scale = (module.running_var.double() + module.eps).rsqrt()
    offset = torch.zeros_like(scale)
    if module.affine:
        scale, offset = scale * module.weight.detach(), module.bias.detach()
    shift = offset - module.running_mean * scale
    rounded = REDUCTION_SLACK * (offset.abs() + (module.running_mean * scale).abs())  # the two terms may cancel
    channels = (-1, *[1] * (len(x.shape) - 1))
    jacobian = OperatorNorms.diagonal(largest(Norms.of(scale).linf) * (1 + REDUCTION_SLACK))
    return through(jacobian, x, x.shape, Norms.of((shift.abs() + rounded).reshape(channels)).repeat(x.shape))
