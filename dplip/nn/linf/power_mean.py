"""The power mean of differences, a relaxation of the l-infinity distance with the same bound at every exponent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dplip.nn.linf import kernel
from dplip.nn.linf.distance import blocks, mapped


def mean_distance(x: Tensor, points: Tensor, p: float, keep: Tensor | None = None) -> Tensor:
    """The power mean ``(mean_i (keep_i |x_i - w_ji|)^p)^(1/p)``, shape (n, m); backward recomputes it in blocks.

    Guarantee: the gradient of each entry in x, and in w, has l1 norm at most 1 and l2 norm at most d^(-1/p).
    """
    k = kernel.squarings(p)
    if k is not None and kernel.usable(x, points):
        return _CompiledMean.apply(x, points, k, keep)[0]
    return _MeanDistance.apply(x, points, p, keep)


class _MeanDistance(torch.autograd.Function):
    """The power mean, computed of differences divided by the largest one, so that no power overflows."""

    @staticmethod
    def forward(x: Tensor, points: Tensor, p: float, keep: Tensor | None) -> Tensor:
        parts = []
        rows, some = blocks(x.shape[0], points.shape[0], x.shape[1])
        for a in range(0, len(x), rows):
            kept = None if keep is None else keep[a : a + rows].T
            z = [_differences(x[a : a + rows].T, points[j : j + some], kept) for j in range(0, len(points), some)]
            parts.append(torch.cat([_power_mean(block, p) for block in z]).T)
        return torch.cat(parts) if parts else x.new_zeros(0, len(points))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, points, ctx.p, keep = inputs
        ctx.save_for_backward(x, points, keep)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, points, keep = ctx.saved_tensors
        rows, some = blocks(x.shape[0], points.shape[0], x.shape[1])
        in_x, in_w = [], torch.zeros_like(points)
        for a in range(0, len(x), rows):
            columns, kept = x[a : a + rows].T, None if keep is None else keep[a : a + rows].T
            back, sides = torch.zeros_like(columns), []
            for j in range(0, len(points), some):
                z = _differences(columns, points[j : j + some], kept)
                u = _power_mean_gradient(z, ctx.p)
                v = g[a : a + rows, j : j + some].T[:, :, None]
                sides.append((u @ v)[..., 0])
                back = back + (u * v.mT).sum(0)
            in_w = in_w - torch.cat(sides)
            in_x.append(back.T)
        return torch.cat(in_x) if in_x else torch.zeros_like(x), in_w, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, points: Tensor, p: float, keep: Tensor | None) -> Any:
        return mapped(_MeanDistance, info.batch_size, in_dims, (x, points, p, keep)), 0


class _CompiledMean(torch.autograd.Function):
    """The power mean of exponent 2^k by the compiled loops; it has no second derivative."""

    @staticmethod
    def forward(x: Tensor, points: Tensor, k: int, keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return kernel.means(x, points, keep, k)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, points, ctx.k, keep = inputs
        ctx.mark_non_differentiable(output[1], output[2])
        ctx.save_for_backward(x, points, keep, output[1], output[2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Tensor, Tensor, None, None]:
        x, points, keep, top, total = ctx.saved_tensors
        return (*kernel.means_backward(x, points, keep, ctx.k, g, top, total), None, None)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, points: Tensor, k: int, keep: Tensor | None) -> Any:
        return mapped(_CompiledMean, info.batch_size, in_dims, (x, points, k, keep)), (0, 0, 0)


def _differences(columns: Tensor, points: Tensor, kept: Tensor | None) -> Tensor:
    z = columns - points[:, :, None]
    return z if kept is None else z * kept


def _scaled(z: Tensor) -> tuple[Tensor, Tensor]:
    """|z| divided by its largest entry along the features, and that entry (1 in place of 0)."""
    z = z.abs()
    top = z.amax(1, keepdim=True)
    top = torch.where(top > 0, top, torch.ones_like(top))
    return z / top, top


def _power_mean(z: Tensor, p: float) -> Tensor:
    a, top = _scaled(z)
    return _power(a, p).mean(1).pow(1 / p) * top[:, 0]


def _power_mean_gradient(z: Tensor, p: float) -> Tensor:
    """``u = sign(z) a^(p-1) / d / mean(a^p)^((p-1)/p)`` with a = |z| / max |z|.

    Both powers use the same rounded a, so the rounding error is a few units of the last place at every p. The form
    ``(|z| / y)^(p-1)`` would multiply the rounding of y by p.
    """
    a, _ = _scaled(z)
    low = _power(a, p - 1)
    mean = (low * a).mean(1, keepdim=True)
    mean = torch.where(mean > 0, mean, torch.ones_like(mean))
    return low * z.sign() * (mean.pow((1 - p) / p) / z.shape[1])


def _power(a: Tensor, p: float) -> Tensor:
    """``a^p`` for a >= 0; repeated squaring for an integer p is several times faster than a general power."""
    if p != int(p) or p > 2**12:
        return a.pow(p)
    result, left = None, int(p)
    while True:
        if left & 1:
            result = a if result is None else result * a
        left >>= 1
        if not left:
            return torch.ones_like(a) if result is None else result
        a = a * a
