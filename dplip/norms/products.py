"""Products of matrices in the type of their factors, with a proved bound of what is rounded away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from dplip.runtime.precision import full_precision

CHUNK = 64
"""Inner terms of a product that are added at once, in whatever order the machine likes."""

BLOCK = 128
"""Rows of a Gram matrix that are computed at once, up to their diagonal block."""

MOST_TERMS = 2**15
"""The most inner terms of a float32 product that :func:`lost` is proved for."""


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` for stacks of matrices, added up in chunks of inner terms (see :func:`lost`)."""
    total = a.new_zeros(*a.shape[:-1], b.shape[-1])
    with exact_float32(a):
        _accumulate(total, a, b)
    return total


def gram(w: Tensor) -> Tensor:
    """``w @ w.mT`` for stacks of matrices, added up as :func:`product` does; the part above the diagonal is copied."""
    rows = w.shape[-2]
    total = w.new_zeros(*w.shape[:-1], rows)
    with exact_float32(w):
        for start in range(0, rows, BLOCK):
            end = min(start + BLOCK, rows)
            _accumulate(total[:, start:end, :end], w[:, start:end], w[:, :end].mT)
            total[:, :start, start:end] = total[:, start:end, :start].mT
    return total


def _accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
    for left, right in zip(a.split(CHUNK, -1), b.split(CHUNK, -2), strict=True):
        total.baddbmm_(left, right)


def lost(terms: int, unit: float, partial: Tensor, magnitudes: Tensor) -> Tensor:
    """A bound of the Frobenius norm of what ``product(a, b)`` is off by, but for underflow.

    Args:
        terms: inner terms, at most ``2**15`` in float32.
        unit: the rounding unit of the factors' type.
        partial: bounds of the Frobenius norms of all partial sums ``a[:, :, :k] @ b[:, :k]``.
        magnitudes: bounds of the Frobenius norm of ``|a| |b|``.

    Proof: a chunk of c terms makes ``C' = C + A B`` of the sum C so far. That is a sum of c + 1 products, off by at
    most ``(c + 1) u (|C| + |A| |B|)`` in any order (Jeannerod and Rump, 2013). Over all chunks the second part adds up
    to ``|a| |b|``, and the first to the number of chunks times the norm of the computed partial sums. These are off by
    no more than the whole, which makes it larger by a factor of less than 1.01. A partial sum that is bounded by the
    computed whole is off by that twice, and so covered too.
    """
    chunks = -(-terms // CHUNK)
    assert (CHUNK + 1) * chunks * unit < 0.004
    return 1.01 * (CHUNK + 1) * unit * (chunks * partial + magnitudes)


def frobenius(a: Tensor) -> Tensor:
    """The Frobenius norm of each matrix of a stack in float64, from above: rows in their type, then all in float64."""
    rows = torch.linalg.vector_norm(a, dim=-1)
    return torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64) * (1 + (a.shape[-1] + 4) * unit_of(a) + 1e-9)


def magnitude(a: Tensor) -> Tensor:
    """A bound of the norm of ``|a|``, the matrix of absolute values, for each matrix of a stack.

    Proof: the norm of a nonnegative symmetric matrix is at most its largest row sum; here ``|a| |a|^T``'s.
    """
    size = a.abs()
    with exact_float32(a):
        sums = size @ size.sum(-2).unsqueeze(-1)
    return (sums.amax((-2, -1)).double() * (1 + 2 * sum(a.shape[-2:]) * unit_of(a))).sqrt()


def unit_of(a: Tensor) -> float:
    """The rounding unit of a tensor's type."""
    return torch.finfo(a.dtype).eps / 2


@contextmanager
def exact_float32(a: Tensor) -> Iterator[None]:
    """Neither TF32 nor autocast takes digits away from products inside the block."""
    with full_precision(), torch.autocast(a.device.type, enabled=False):
        yield
