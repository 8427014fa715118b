"""Products of matrices in the type of their factors, with a proved bound of what is rounded away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from dplip.runtime.precision import full_precision

CHUNK = 64
"""Inner terms of a product that are added at once, in whatever order the machine likes."""


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` for stacks of matrices, added up in chunks of inner terms (see :func:`product_error`)."""
    total = a.new_zeros(*a.shape[:-1], b.shape[-1])
    with exact_float32(a):
        for left, right in zip(a.split(CHUNK, -1), b.split(CHUNK, -2), strict=True):
            total.baddbmm_(left, right)
    return total


def product_error(a: Tensor, partial: Tensor, magnitudes: Tensor) -> Tensor:
    """A bound of the Frobenius norm of what ``product(a, b)`` is off by, but for underflow.

    Args:
        a: the left factors, shape (stack, rows, terms).
        partial: bounds of the Frobenius norms of all partial sums ``a[:, :, :k] @ b[:, :k]``, exact or computed.
        magnitudes: bounds of the norms of ``|b|``, entry by entry.

    Proof: a chunk of c terms makes ``C' = C + A B`` of the sum C so far. That is a sum of c + 1 products, off by at
    most ``(c + 1) u (|C| + |A| |B|)`` in any order (Jeannerod and Rump, 2013). Over all chunks the first part adds up
    to the number of chunks times ``partial``, and the second to ``| |a| |b| |_F <= |a|_F magnitudes``. Computed
    partial sums are larger than exact ones by less than 1% (checked: the terms are fewer than 0.004 / u).
    """
    unit, terms = torch.finfo(a.dtype).eps / 2, a.shape[-1]
    assert terms * unit < 0.004
    chunks = -(-terms // CHUNK)
    return 1.01 * (CHUNK + 1) * unit * (chunks * partial + frobenius(a) * magnitudes)


def frobenius(a: Tensor) -> Tensor:
    """The Frobenius norm of each matrix of a stack, summed in float64."""
    return torch.linalg.vector_norm(a, dim=(-2, -1), dtype=torch.float64) * (1 + 1e-9)


def magnitude(a: Tensor) -> Tensor:
    """A bound of the norm of ``|a|``, the matrix of absolute values, for each matrix of a stack.

    Proof: the norm of a nonnegative symmetric matrix is at most its largest row sum; here ``|a| |a|^T``'s.
    """
    size = a.abs()
    rows = size @ size.sum(-2).unsqueeze(-1)
    slack = 1 + 2 * sum(a.shape[-2:]) * torch.finfo(a.dtype).eps
    return (rows.amax((-2, -1)).double() * slack).sqrt()


@contextmanager
def exact_float32(a: Tensor) -> Iterator[None]:
    """Neither TF32 nor autocast takes digits away from products inside the block."""
    with full_precision(), torch.autocast(a.device.type, enabled=False):
        yield
