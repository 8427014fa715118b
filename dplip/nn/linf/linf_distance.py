"""Layers of l-infinity distances to learnable points, whose gradient bound needs no bound on the input."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dplip.errors import ConfigurationError
from dplip.nn.linf.distance import finite, max_distance
from dplip.nn.linf.power_mean import mean_distance
from dplip.norms import Norms, OperatorNorms, times
from dplip.rules import SUMMATIONS, Pullback, Summation, refuse_module, rule, through
from dplip.rules.convolution import output_size, reads


class Relaxed(nn.Module):
    """Base class of the layers whose distance has an exponent p, which :func:`relax` sets."""

    p: float


class LInfDistance(Relaxed):
    """``y_j = ||x - w_j||_inf + b_j`` over the last axis; with ``p`` finite, the power mean of |x - w_j| in its place.

    Args:
        in_features, out_features: sizes; weight of shape (out_features, in_features), drawn from N(0, 1).
        bias: add a learnable b, in place of a shift by the mean of the batch (which would leak the batch).
        negate: return ``b_j - ||x - w_j||_inf``, so that the nearest point scores highest.
        p: ``(mean_i |x_i - w_ji|^p)^(1/p)``, p >= 2, or inf; :func:`relax` sets it for a whole model.

    Shape: (batch, ..., in_features) to (batch, ..., out_features).

    Guarantee: at every p, for every input (NaN counts as 0, entries are cut at 1e30): 1-Lipschitz in l-infinity; for
    one example with output gradient v, the gradient in x has l1 norm at most ``|v|_1``, and the gradient in the weight
    has l1 and l2 norms at most those of v, for every input, fan-in and width.
    Source: Zhang, Cai, Lu, He and Wang, 2021 (arXiv 2102.05363, 2110.06850); the power mean is ours.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, negate: bool = False, p: float = math.inf
    ) -> None:
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise ConfigurationError(f"in_features={in_features}, out_features={out_features}: give sizes >= 1.")
        self.in_features, self.out_features, self.negate, self.p = in_features, out_features, negate, exponent(p)
        self.weight = nn.Parameter(torch.randn(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        rows = finite(x).reshape(-1, x.shape[-1])
        y = max_distance(rows, self.weight) if math.isinf(self.p) else mean_distance(rows, self.weight, self.p)
        y = y.reshape(*x.shape[:-1], self.out_features)
        y = -y if self.negate else y
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        shown = f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"
        return shown + (", negate=True" if self.negate else "") + ("" if math.isinf(self.p) else f", p={self.p:g}")


class LInfDistance2d(Relaxed):
    """:class:`LInfDistance` of every patch of an image, the convolutional form, with zero padding.

    Args:
        in_channels, out_channels, kernel_size, stride, padding: as for a convolution; weight of shape
            (out_channels, in_channels, kernel_size, kernel_size).
        bias, negate, p: as for :class:`LInfDistance`.

    Guarantee: as for :class:`LInfDistance`, but the weight's gradient sums over positions: its l1 norm is at most
    ``|v|_1``, and its l2 norm at most ``min(|v|_1, sqrt(positions) |v|_2)``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        negate: bool = False,
        p: float = math.inf,
    ) -> None:
        super().__init__()
        if min(in_channels, out_channels, kernel_size, stride) < 1 or padding < 0:
            raise ConfigurationError(
                f"in_channels={in_channels}, out_channels={out_channels}, kernel_size={kernel_size}, stride={stride}, "
                f"padding={padding}: sizes are >= 1, and padding >= 0."
            )
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.negate, self.p = negate, exponent(p)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def size(self, n: int) -> int:
        """The number of positions along an axis of n entries."""
        return output_size(n, self.kernel_size, self.stride, (self.padding, self.padding), 1)

    def patches(self, x: Tensor) -> Tensor:
        """Every patch as a row, shape (batch, positions, in_channels * kernel_size**2)."""
        return F.unfold(x, self.kernel_size, padding=self.padding, stride=self.stride).mT

    def forward(self, x: Tensor) -> Tensor:
        patches, points = self.patches(finite(x)), self.weight.flatten(1)
        rows = patches.flatten(0, 1)
        y = max_distance(rows, points) if math.isinf(self.p) else mean_distance(rows, points, self.p)
        y = y.reshape(*patches.shape[:2], -1).mT.reshape(len(x), -1, self.size(x.shape[2]), self.size(x.shape[3]))
        y = -y if self.negate else y
        return y if self.bias is None else y + self.bias[:, None, None]

    def extra_repr(self) -> str:
        out, inner = self.weight.shape[:2]
        return f"{inner}, {out}, kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


def exponent(p: float) -> float:
    """p as a float; raises unless p >= 2, where the bounds hold."""
    if not p >= 2:
        raise ConfigurationError(f"p={p}: the relaxation takes p >= 2, or inf for the l-infinity distance itself.")
    return float(p)


def relax(model: nn.Module, p: float) -> None:
    """Set the exponent of every distance layer of a model; the bounds hold at every p."""
    for module in model.modules():
        if isinstance(module, Relaxed):
            module.p = exponent(p)


def bound_distance(
    x: Norms,
    weight: Tensor,
    bias: Tensor | None,
    shape: tuple[int, ...],
    omega: tuple[float, float],
    axis: int = -1,
    reuse: int = 1,
) -> tuple[Norms, Pullback]:
    """The output and pullback of distances whose gradients in the differences x - w_j have l1 norm at most 1.

    Args:
        omega: bounds of the l2 and l-infinity norms of these gradients.
        axis: the axis of one example's output along which the points w_j lie.
        reuse: the largest number of positions that read one entry of x.
    """
    m, (two, one) = weight.shape[0], omega
    # Rows of the Jacobian have l1 norm <= 1, l2 norm <= two, entries <= one; a column has entries for m points at
    # `reuse` positions. |J x|_2^2 = sum over positions and points of <u, x_patch>^2 <= m two^2 reuse |x|_2^2.
    jacobian = OperatorNorms(
        one_one=m * reuse * one,
        one_two=math.sqrt(m * reuse) * one,
        one_inf=one,
        two_two=math.sqrt(m * reuse) * two,
        two_inf=two,
        inf_inf=1.0,
    )
    sizes = [1] * len(shape)
    sizes[axis] = m
    # At x = 0 a distance is at most the largest |w_ji|, since every form is a mean or the maximum of |x - w|.
    zero = weight.detach().flatten(1).abs().amax(1) + (0.0 if bias is None else bias.detach().abs())
    output, inner = through(jacobian, x, shape, Norms.of(zero.reshape(sizes)).repeat(shape))

    def pullback(v: Norms) -> Any:
        # Row j of the weight's gradient is -sum over positions of v_j u_j, with |u_j|_1 <= 1: its l2 norm is at most
        # two sum |v_j|, its entries at most one sum |v_j|, and all rows together have l1 norm at most |v|_1. None of
        # these depends on the input.
        sums = v.sum_to((m,))
        row = Norms(tuple(weight.shape), v.l1, times(two, sums.l2), times(one, sums.linf))
        return inner(v)[0], {"weight": row} if bias is None else {"weight": row, "bias": sums}

    return output, pullback


def peaks(p: float, features: int) -> tuple[float, float]:
    """Bounds of the l2 and l-infinity norms of the gradient of one distance.

    Proof: at p = inf it is one-hot. The power mean y of d entries has the gradient ``u_i = (|z_i| / y)^(p-1) / d`` in
    |z_i|. With ``n = d^(1/p) y`` the lp norm of z, ``u = d^(-1/p) (|z| / n)^(p-1)``, and (|z| / n)^(p-1) has lq norm 1
    for the dual q <= 2, so l2 norm and entries at most 1. By Hoelder, ``|u|_1 <= d^(-1/p) d^(1/p) = 1``.
    """
    peak = 1.0 if math.isinf(p) else features ** (-1.0 / p)
    return peak, peak


@rule(LInfDistance)
def linf_distance(module: LInfDistance, x: Norms) -> tuple[Norms, Pullback]:
    if x.shape[-1] != module.in_features:
        refuse_module(module, f"is given one example of shape {x.shape}.", "Give it in_features entries a row.")
    shape = (*x.shape[:-1], module.out_features)
    return bound_distance(x, module.weight, module.bias, shape, peaks(module.p, module.in_features))


@rule(LInfDistance2d)
def linf_distance_2d(module: LInfDistance2d, x: Norms) -> tuple[Norms, Pullback]:
    if len(x.shape) != 3 or x.shape[0] != module.weight.shape[1]:
        refuse_module(module, f"is given one example of shape {x.shape}.", "Give it (channels, height, width).")
    k, s, pad = module.kernel_size, module.stride, (module.padding, module.padding)
    shape = (module.weight.shape[0], module.size(x.shape[1]), module.size(x.shape[2]))
    reuse = math.prod(reads(n, k, s, pad, 1) for n in x.shape[1:])
    features = module.weight[0].numel()
    return bound_distance(x, module.weight, module.bias, shape, peaks(module.p, features), axis=0, reuse=max(reuse, 1))


def by_points(parameter: tuple[int, ...], output: tuple[int, ...]) -> Summation:
    """The summation of a weight of points: one term for each position of an example."""
    return Summation(math.prod(output) // parameter[0])


SUMMATIONS[linf_distance] = SUMMATIONS[linf_distance_2d] = by_points
