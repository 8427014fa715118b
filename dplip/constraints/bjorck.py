"""Bjorck's iteration towards the nearest orthogonal matrix, with a proved bound of the norm of what it computes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dplip.norms.products import CHUNK, MOST_TERMS, exact_float32, frobenius, gram, lost, magnitude, product, unit_of

LOOSENESS = 0.002
"""How far beyond 1 the proved rounding of a float32 Gram matrix may bring a norm, before it is taken in float64."""


def iterate(w: Tensor) -> tuple[Tensor, float, float]:
    """One iterate ``X - (X X^T - I) X / 2`` of X = W / c, for a stack of matrices with no more rows than columns.

    Returns:
        The iterates, a bound of their norms, and the root mean square of the eigenvalues of ``X X^T - I`` that is
        left, about. The bound is infinite where the mean square of W's rows is not between 2^-40 and 2^40, and for
        NaN; within, what underflows is less than 2^-60 of W.

    Proof: a singular value s of X goes to ``1.5 s - 0.5 s^3``, which maps [0, 2] into [-1, 1]. Let S be the computed
    Gram matrix of m rows, off by at most r (:func:`lost`; its partial sums are positive semidefinite, so smaller than
    the whole), and E the computed ``S / c^2 - I``, off by at most ``d = r / c^2 + 5 u (|E|_F + sqrt m)``. Then
    ``|X|^2 <= 1 + |E| + d``, where |E| is at most |E|_F, and at most the root of |E E^T|_F. With c^2 the mean
    eigenvalue, or larger so that |X|^2 stays within 4, the iterate with E in place of ``X X^T - I`` is at most
    ``1 + d |X| / 2``. Added are half of the rounding of E X, and 5 u times the iterate's Frobenius norm sqrt m for the
    last operations.
    Source: Bjorck and Bowie, 1971.
    """
    (rows, columns), unit, spread, norm = w.shape[-2:], unit_of(w), magnitude(w), frobenius(w)
    mean = norm**2 / rows
    if not bool(((mean > 2.0**-40) & (mean < 2.0**40)).all()):
        return w, math.inf, math.inf
    loose = (CHUNK + 1) * unit * norm * spread / (2 * mean)
    if w.dtype != torch.float64 and (columns > MOST_TERMS or bool((loose > LOOSENESS).any())):
        return iterate(w.double())
    e = gram(w)
    off = lost(columns, unit, frobenius(e), norm * spread)
    inverse = _shifted(e, 0.0, mean.reciprocal())
    size = frobenius(e)
    top = 1 + _norm(e, size) + off * inverse + 5 * unit * (size + math.sqrt(rows))  # of the eigenvalues of X X^T
    if bool((top > 4).any()):
        larger = _shifted(e, 1.0, (3 / top).clamp_max(1.0))
        inverse, top, size = inverse * larger, top * larger, frobenius(e)
    root = inverse.sqrt()
    off = off * inverse + 5 * unit * (size + math.sqrt(rows))
    rounded = lost(rows, unit, size * top.sqrt(), size * spread * root)
    bound = 1 + 1e-9 + float((off * top.sqrt() + rounded).max()) / 2 + 5 * unit * math.sqrt(rows)
    if not (bound < 1.01 and float(top.max()) <= 4):
        return w, math.inf, math.inf
    w = product(e, w).mul_(-0.5).add_(w).mul_(root.to(w.dtype)[:, None, None])
    # An eigenvalue 1 + e goes to 1 - 0.75 e^2 + 0.25 e^3, and noise's e have fourth powers of twice their squared mean.
    return w, bound, 1.06 * float(size.max()) ** 2 / rows


def _shifted(e: Tensor, diagonal: float, factor: Tensor) -> Tensor:
    """Make ``factor (e + diagonal I) - I`` of e in place; returns the factors as they were rounded, in float64."""
    rounded = factor.to(e.dtype)
    if diagonal:
        e.diagonal(dim1=-2, dim2=-1).add_(diagonal)
    e.mul_(rounded[:, None, None]).diagonal(dim1=-2, dim2=-1).sub_(1)
    return rounded.double()


def _norm(e: Tensor, size: Tensor) -> Tensor:
    """The norm of square matrices of Frobenius norm ``size``, from above; of the larger ones also by their squares.

    Proof: ``|E|^2 <= |E E^T|_F``. The square of m rows is off by at most ``m u |E|_F^2``, in any order of summation.
    """
    if bool((size < 2.9).all()):
        return size
    with exact_float32(e):
        squared = frobenius(e @ e.mT) + e.shape[-1] * unit_of(e) * size**2
    return torch.minimum(size, squared.sqrt())
