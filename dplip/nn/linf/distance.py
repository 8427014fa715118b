"""Distances of many rows to many points, computed in blocks without a tensor of rows x points x features."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dplip.nn.linf import kernel
from dplip.nn.linf.pruning import candidates, pruned_winners, worth

BLOCK_ENTRIES = 400_000
"""Entries of a block of differences, which fits a processor's second-level cache."""

LARGEST = 1e30
"""The largest entry: larger ones are cut to it, so that a difference never overflows."""


def finite(x: Tensor) -> Tensor:
    """x with NaN replaced by 0 and every entry cut at 1e30; 1-Lipschitz on inputs without NaN."""
    top = min(LARGEST, torch.finfo(x.dtype).max / 4)
    return torch.nan_to_num(x, nan=0.0, posinf=top, neginf=-top).clamp(-top, top)


def max_distance(x: Tensor, points: Tensor, keep: Tensor | None = None) -> Tensor:
    """``max_i keep_i |x_i - w_ji|`` for rows x (n, d) and points w (m, d), shape (n, m).

    Args:
        keep: a mask of zeros and ones, of the shape and dtype of x.

    Guarantee: the gradient of each distance is one-hot, at ties too: it is -1, 0 or 1 at one winner.
    """
    return _MaxDistance.apply(x, points, keep)[0]


def ranked_distance(x: Tensor, points: Tensor, omega: Tensor) -> Tensor:
    """``sum_k omega_k z_(k)``, z_(k) the k-th largest of |x_i - w_ji|, for K weights omega; shape (n, m)."""
    graded = torch.is_grad_enabled() and (x.requires_grad or points.requires_grad)
    if not graded and len(omega) <= kernel.MOST and kernel.usable(x, points):
        return kernel.ranked(x, x, points, omega)
    return _RankedDistance.apply(x, points, omega)[0]


@torch.no_grad()
def distance_bounds(lower: Tensor, upper: Tensor, points: Tensor, omega: Tensor) -> tuple[Tensor, Tensor]:
    """The least and greatest ``sum_k omega_k z_(k)`` for x between ``lower`` and ``upper``, each of shape (n, m).

    Proof: order statistics do not decrease in any z_i = |x_i - w_ji|, whose least value on the interval is
    ``max(l_i - w, w - u_i, 0)`` and greatest ``max(u_i - w, w - l_i)``. Subtraction rounds monotonically, so the proof
    holds for the rounded differences too.
    """
    if len(omega) <= kernel.MOST and kernel.usable(lower, points):
        return kernel.ranked(lower, upper, points, omega), kernel.ranked(upper, lower, points, omega)
    ends = []
    for above, below in ((lower, upper), (upper, lower)):
        part = lower.new_empty(len(lower), len(points))
        step = max(1, BLOCK_ENTRIES // max(points.numel(), 1))
        for a in range(0, len(lower), step):
            z = torch.maximum(above[a : a + step, None] - points, points - below[a : a + step, None]).clamp_min_(0)
            part[a : a + step] = z.topk(len(omega), dim=2).values @ omega
        ends.append(part)
    return ends[0], ends[1]


def blocks(n: int, m: int, d: int) -> tuple[int, int]:
    """The numbers of rows and of points in a block: first rows, for long vectors, then as many points as fit."""
    most = max(16, min(512, BLOCK_ENTRIES // max(d, 1)))
    rows = max(1, -(-n // max(1, -(-n // most))))  # blocks of nearly equal size
    return rows, max(1, min(m, BLOCK_ENTRIES // (rows * max(d, 1))))


class _MaxDistance(torch.autograd.Function):
    """The largest difference; it saves the winner's signed position as one integer for a backward pass by scatter."""

    @staticmethod
    def forward(x: Tensor, points: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        if kernel.usable(x, points):
            return kernel.winners(x, points, keep)
        n, d, m = x.shape[0], x.shape[1], points.shape[0]
        if keep is None and n:
            alive = candidates(x, points)
            if worth(alive):
                return pruned_winners(x, points, alive, BLOCK_ENTRIES)
        # Features are split into `groups` of `taps`: the maximum of each group is one fast reduction along rows, and
        # only the winning group is searched for the position.
        taps = max(1, math.isqrt(d))
        groups = -(-d // taps)
        spare = (0, groups * taps - d)  # padded differences are 0: they win only where all are 0, with sign 0
        x, points = (torch.nn.functional.pad(t, spare) for t in (x, points))
        keep = None if keep is None else torch.nn.functional.pad(keep, spare)
        values = x.new_empty(m, n)
        group = torch.empty(m, n, dtype=torch.int64, device=x.device)
        rows, some = blocks(n, m, groups * taps)
        for a in range(0, n, rows):
            columns = x[a : a + rows].T.contiguous()
            kept = None if keep is None else keep[a : a + rows].T.contiguous()
            width = columns.shape[1]
            buffer = x.new_empty(some, groups * taps, width)
            for j in range(0, m, some):
                w = points[j : j + some, :, None]
                z = torch.sub(columns, w, out=buffer[: len(w)]).abs_()
                if kept is not None:
                    z.mul_(kept)
                best = z.view(len(w), groups, taps, width).amax(2).max(1)
                values[j : j + some, a : a + rows] = best.values
                group[j : j + some, a : a + rows] = best.indices
        return values.T, _positions(x, points, keep, group, values, taps).T

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])
        ctx.features = inputs[0].shape[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Any) -> tuple[Tensor | None, Tensor | None, None]:
        (code,) = ctx.saved_tensors
        (n, m), d = g.shape, ctx.features
        index = (code.abs().long() - 1).clamp_min(0)
        signed = g * code.sign()
        in_x = g.new_zeros(n, d).scatter_add(1, index, signed) if ctx.needs_input_grad[0] else None
        in_w = g.new_zeros(m, d).scatter_add(1, index.mT, -signed.mT) if ctx.needs_input_grad[1] else None
        return in_x, in_w, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, points: Tensor, keep: Tensor | None) -> Any:
        return mapped(_MaxDistance, info.batch_size, in_dims, (x, points, keep)), (0, 0)


def _positions(x: Tensor, points: Tensor, keep: Tensor | None, group: Tensor, values: Tensor, taps: int) -> Tensor:
    """``sign * (position + 1)`` of one largest difference in each winning group; 0 for a difference of 0."""
    m, n = group.shape
    code = torch.empty(m, n, dtype=torch.int32, device=x.device)
    wide, deep = x.reshape(-1, taps), points.reshape(-1, taps)
    kept = None if keep is None else keep.reshape(-1, taps)
    groups = x.shape[1] // taps
    starts = torch.arange(n, device=x.device) * groups
    ranks = torch.arange(1, taps + 1, device=x.device, dtype=torch.float32)
    some = max(1, BLOCK_ENTRIES // (n * taps)) if n else 1
    for j in range(0, m, some):
        chosen, best = group[j : j + some], values[j : j + some].reshape(-1, 1)
        rows = torch.arange(j, j + len(chosen), device=x.device)[:, None] * groups + chosen
        read = (starts + chosen).reshape(-1)
        z = wide.index_select(0, read).sub_(deep.index_select(0, rows.reshape(-1)))
        if kept is not None:
            z.mul_(kept.index_select(0, read))
        wins = (z == best).float().sub_((z == -best).float())  # z repeats the same subtraction, so == is exact
        place = wins @ ranks
        tied = (wins.abs().sum(1) > 1).nonzero()[:, 0]
        if len(tied):
            place[tied] = _first(wins[tied], ranks)
        signed = chosen.reshape(-1) * taps * place.sign() + place.double()
        code[j : j + some] = signed.to(torch.int32).view(chosen.shape)
    return code


def _first(wins: Tensor, ranks: Tensor) -> Tensor:
    """The signed rank of the first of several winners."""
    at = wins.abs().argmax(1, keepdim=True)
    return ranks[at[:, 0]] * wins.gather(1, at)[:, 0]


class _RankedDistance(torch.autograd.Function):
    """The sum of order statistics; it saves the signed positions of the K winners for the backward pass."""

    @staticmethod
    def forward(x: Tensor, points: Tensor, omega: Tensor) -> tuple[Tensor, Tensor]:
        n, d, m, k = x.shape[0], x.shape[1], points.shape[0], len(omega)
        values = x.new_empty(n, m)
        code = torch.empty(n, m, k, dtype=torch.int32, device=x.device)
        rows = max(1, BLOCK_ENTRIES // max(d, 1))
        step = max(1, rows // m)
        some = min(m, rows)
        for a in range(0, n, step):
            for j in range(0, m, some):
                z = x[a : a + step, None] - points[j : j + some]
                top = z.abs().topk(k, dim=2)
                values[a : a + step, j : j + some] = top.values @ omega
                signs = z.gather(2, top.indices).sign()
                code[a : a + step, j : j + some] = ((top.indices + 1) * signs).to(torch.int32)
        return values, code

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1], inputs[2])
        ctx.features = inputs[0].shape[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Any) -> tuple[Tensor | None, Tensor | None, None]:
        code, omega = ctx.saved_tensors
        (n, m), d = g.shape, ctx.features
        index = (code.abs().long() - 1).clamp_min(0)
        signed = g[..., None] * (code.sign() * omega)
        in_x = g.new_zeros(n, d).scatter_add(1, index.flatten(1), signed.flatten(1))
        index, signed = (t.movedim(1, 0).flatten(1) for t in (index, signed))
        return in_x, g.new_zeros(m, d).scatter_add(1, index, -signed), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, points: Tensor, omega: Tensor) -> Any:
        return mapped(_RankedDistance, info.batch_size, in_dims, (x, points, omega)), (0, 0)


def mapped(function: Any, size: int, in_dims: Any, arguments: tuple[Any, ...]) -> Any:
    """The vmap of an autograd function: one call for each mapped example."""
    parts = [
        t if not isinstance(t, Tensor) else t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
        for t, dim in zip(arguments, in_dims, strict=True)
    ]
    called = [function.apply(*[t[i] if isinstance(t, Tensor) else t for t in parts]) for i in range(size)]
    if isinstance(called[0], Tensor):
        return torch.stack(called)
    return tuple(torch.stack(outputs) for outputs in zip(*called, strict=True))
