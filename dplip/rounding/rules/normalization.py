"""Rounding rules of functions of all entries of an example: projections, normalisations and distances."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dplip import nn as dn
from dplip.norms import Bound, Norms, below, times
from dplip.rounding.registry import Roundings, rounding


@rounding(dn.BallProjection)
def ball_projection(module: dn.BallProjection, x: Norms) -> Roundings:
    # The factor is off by the inward slack (4e-6), by the norm's slack for n squares, and by their roundings. Where
    # the norm with all of this is inside the ball, the factor is 1 up to a few units.
    slack = 1.5 * x.size + 84 + math.sqrt(x.size) * 2.0**-62 / (module.radius * 2.0**-24)
    inside = module.radius * (1 - 2 * slack * 2.0**-24)
    if isinstance(x.l2, Tensor):
        outside = torch.where(x.l2 < 1e18, torch.full_like(x.l2, slack), math.inf)
        output: Bound = torch.where(x.l2 <= inside, torch.full_like(x.l2, 4.0), outside)
    else:
        output = 4.0 if x.l2 <= inside else slack if x.l2 < 1e18 else math.inf
    return Roundings(output=output, back=4.0 * x.size + 128, held=True)


@rounding(dn.DistanceAttention)
def distance_attention(module: dn.DistanceAttention, x: Norms) -> Roundings:
    """The roundings of a mean of T pulls of n features, and of the pullback's.

    Proof: d is off by 4 units of itself (a difference, and a quotient by the rounded scale), ``1 + |d|^2`` by n + 9 and
    w by half of that and 2, so e = w d by ``n / 2 + 12``. The mean of T of them and the scale add T + 2 units of
    ``mean_s w |x_t - x_s| <= |x_t| + mean_s |x_s|``, whose norms are at most twice those of x. The last difference
    rounds y. Where the square of d could overflow there is no bound; where d underflows, it is off by 2^-149 scales.

    The pullback of v is v less a mean of ``w (v_t - v_s)``, of magnitudes of at most 2 |v| and off by ``n / 2 + T +
    12``, and of ``w e e^T (v_t - v_s)``, of magnitudes of at most the rule's norms, off by ``3 (n / 2 + 12) + n + T +
    4``. So ``back`` is in units of these norms, and no more is to be allowed for |J|.
    """
    tokens, features = x.shape[0], x.shape[1] // module.heads
    pulls = x * (2 * (features / 2 + tokens + 16.0))
    pulls = pulls + Norms(x.shape, linf=times(below(x.l2, 1e18 * module.scale), 0.0))
    back = 3.5 * features + 3 * tokens + 70.0
    return Roundings(0.0, 1.0, pulls, back=back, apart=module.scale * 2.0**-140, diagonal=True)


@rounding(dn.Frozen)
def frozen(module: dn.Frozen, x: Norms) -> Roundings:
    return Roundings(output=math.inf, held=True)  # the module's roundings have no bound


def _normalised(module: Any, x: Norms) -> Roundings:
    """The roundings of (x - mean) / sqrt(variance + eps) for groups of at most n entries, the size of the example.

    Proof: the mean is off by n units of the largest entry X, and the variance, computed from squares, by 4 n X^2. So
    an output entry, of at most sqrt n, is off by ``(n + 8) X / sqrt eps + (4 n X^2 / eps + 8) sqrt n``.
    """
    n, eps, top = x.size, module.eps, x.linf
    square = times(top, top)
    size = times(top, (n + 8) / math.sqrt(eps)) + (times(square, 4 * n / eps) + 8) * math.sqrt(n) if eps else math.inf
    return Roundings(more=Norms(x.shape, linf=size), back=4.0 * n + 64, held=True)


rounding(nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d)(_normalised)


@rounding(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def batch_norm(module: Any, x: Norms) -> Roundings:
    # The output is a x + b with a = weight / sqrt(variance + eps) and b = bias - mean a, whose two terms may cancel:
    # some eight operations, in this order or in that of (x - mean) a + bias.
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
    # Differences, a maximum and a bias round; a power mean also sums as many powers as features, and ranks are summed.
    points, features = module.weight.shape[0], module.weight[0].numel()
    depth = 4.0 if math.isinf(module.p) else 4.0 * features + 64
    ranks = float(getattr(module, "top", 0))
    windows = getattr(module, "kernel_size", 1) ** 2
    return Roundings(depth + ranks, 4.0, back=points * windows + depth + ranks, one_hot=True)


@rounding(dn.TabularInput)
def tabular_input(module: dn.TabularInput, x: Norms) -> Roundings:
    # Outputs are at most 1, and the error does not grow with x: x is clamped exactly, and its difference to low is off
    # by one unit of itself. So are the width, both logarithms (the relative error of log(1 + a) is at most that of a)
    # and their quotient: together 8 units of at most 1. A block of g entries sums g entries of at most 1. The computed
    # and the exact block may each be up to 1e-6 beyond the simplex.
    group = max([0, *module.groups])
    return Roundings(0.0, 8.0, Norms(x.shape, linf=8.0 + 2.0 * group**2), back=4.0 * group + 32, apart=2e-6, held=True)
