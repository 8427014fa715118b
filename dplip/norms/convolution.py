"""Operator norms of convolutions, certified from above (never by power iteration)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dplip.norms.cache import carried
from dplip.norms.matrix import EIGENVALUE_SLACK, greatest, greatest_root, scale_of, spectral_norm
from dplip.norms.operator_norms import OperatorNorms
from dplip.norms.value_norms import require_real

GRID = 32
"""Frequencies per axis at which the symbol of a convolution is evaluated."""


def _dilate(kernel: Tensor, dilation: Sequence[int]) -> Tensor:
    """The dilated kernel as a dense one, with zeros between its taps."""
    for axis, d in enumerate(dilation, start=3):
        if d > 1:
            size = list(kernel.shape)
            size[axis] = d * (size[axis] - 1) + 1
            wide = kernel.new_zeros(size)
            wide.index_copy_(axis, torch.arange(0, size[axis], d, device=kernel.device), kernel)
            kernel = wide
    return kernel


def _polyphase(kernel: Tensor, stride: Sequence[int]) -> Tensor:
    """The kernel of stride 1, on ``prod(stride)`` times as many channels, that acts as the strided one.

    With tap t = s a + b, ``y[o] = sum_{a,b} K[s a + b] x[s (o + a) + b]``; the phases ``x_b[j] = x[s j + b]`` are
    disjoint, so the regrouped input has the norms of x.
    """
    for axis, s in enumerate(stride):
        if s > 1:
            g, co, ci, *taps = kernel.shape
            missing = -taps[axis] % s
            pad = [0, 0] * (len(taps) - 1 - axis) + [0, missing]
            kernel = torch.nn.functional.pad(kernel, pad)
            kernel = kernel.unflatten(3 + axis, (-1, s)).movedim(4 + axis, 3)
            kernel = kernel.reshape(g, co, ci * s, *taps[:axis], -1, *taps[axis + 1 :])
    return kernel


def _symbol_norm(kernel: Tensor, grid: Sequence[int]) -> float:
    """The largest spectral norm of the kernel's Fourier symbol over a grid of frequencies, for (g, co, ci, *taps)."""
    k = kernel.detach().double()
    scale = scale_of(k)
    if scale == 0.0:
        return 0.0
    axes = tuple(range(3, k.ndim))
    # A real kernel's symbol at -theta is the conjugate of that at theta: half of the grid suffices.
    symbol = torch.fft.rfftn(k / scale, s=tuple(grid), dim=axes)
    symbol = symbol.movedim((1, 2), (-2, -1)).reshape(-1, k.shape[1], k.shape[2])
    worst = max(float(torch.linalg.svdvals(part)[:, 0].max()) for part in symbol.split(256))
    return scale * worst * (1 + EIGENVALUE_SLACK)


def convolution_norms(
    weight: Tensor,
    input_size: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
    circular: bool = False,
) -> OperatorNorms:
    """The induced norms of a convolution (cross-correlation) with a weight of shape (out, in / groups, \\*taps).

    Args:
        input_size: spatial size of the input, or None for a bound that holds at every size.
        padding: zeros, or wrapped entries if ``circular``, before and after each axis.

    Guarantee: upper bounds. Every zero-padded, cropped or strided convolution is a compression of the one on Z^d,
    whose l2 norm is the supremum of the norm of the Fourier symbol. Small axes use the torus of N >= n + padding
    points: there the operator is an exact submatrix of the circular one (no wrap meets a counted output). Other axes
    use ``sup <= max over the N-grid / prod cos(pi (k - 1) / 2N)``, which holds at every size: for unit u, v the
    function Re(e^{i phi} u* K v) is, after a shift, a real trigonometric polynomial of degree (k - 1) / 2, which by
    Riesz's lemma stays above ``||T|| cos(d x)`` at distance x from a maximum.
    """
    require_real(weight)
    w = weight.detach()
    if w.is_meta:
        return OperatorNorms()
    kernel = _polyphase(_dilate(w.unflatten(0, (groups, -1)), dilation), stride)
    taps = kernel.shape[3:]
    dense = w.unflatten(0, (groups, -1)).flatten(2)
    key = (id(weight), tuple(input_size or ()), tuple(stride), tuple(padding), tuple(dilation), groups, circular)
    gain = math.sqrt(math.prod(taps))  # a pixel meets one tap of the polyphase kernel for each output it reaches

    def spectral() -> float:
        if math.prod(w.shape[2:]) == 1 and groups == 1:
            return spectral_norm(w.flatten(1))
        cosines = 1.0
        grid = []
        for axis, k in enumerate(taps):
            before, after = padding[axis]
            n = None if input_size is None else input_size[axis]
            if circular and n is not None:  # the rule refuses a stride that does not divide n
                grid.append(n // stride[axis])
                continue
            if not circular and n is not None:
                if stride[axis] == 1 and before == after <= k - 1:
                    points = n + before
                else:
                    points = -(-(n + before + after) // stride[axis])
                if max(points, k) <= GRID + 8:
                    grid.append(max(points, k))
                    continue
            points = max(GRID, 8 * k)
            cosines *= math.cos(math.pi * (k - 1) / (2 * points))
            grid.append(points)
        return _symbol_norm(kernel, grid) / cosines

    two_two = carried(key, w, spectral, gain)
    read = kernel.transpose(1, 2).flatten(2)
    return OperatorNorms(
        one_one=greatest(read.abs(), 2),
        one_two=greatest_root(read.square(), 2),
        one_inf=float(w.abs().max()),
        two_two=two_two,
        two_inf=greatest_root(dense.square(), 2),
        inf_inf=greatest(dense.abs(), 2),
    )
