"""The norm of a matrix to within half a percent, guessed by Lanczos's method and then proved by a factorisation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dplip.norms.products import MOST_TERMS, exact_float32, frobenius, gram, lost, magnitude, unit_of

STEPS = 24
MARGINS = (0.004, 0.02, 0.1)
"""How far above the guessed eigenvalue one is proved to be none, in turn."""

ROUNDED = 0.006
"""The most of the eigenvalue that the proved rounding of a float32 Gram matrix may take; beyond, it is in float64."""

SMALL = 200
"""Rows of a matrix whose eigenvalues cost no more than this."""


def close_norm(weight: Tensor) -> float | None:
    """An upper bound of the largest singular value, most often within 0.5%; None: none was proved, or it is small.

    Proof: let S be the computed Gram matrix of the m rows of the smaller side, off by at most r (:func:`lost`). If
    Cholesky's factorisation of A = cI - S in float64 comes to its end, its factor R is that of ``A + D`` with
    ``|D| <= (m + 2) u |R|^T |R|`` entry by entry, in any order of its sums (Higham, 2002, theorem 10.3), so
    ``|D| <= 2 (m + 2) u trace A`` for m u < 0.1. Then ``S <= (1 + 2 (m + 3) m u) c I``, and the square of the norm is
    at most that and r. With 2^-45 in place of u there is room for libraries that multiply by inverses of diagonal
    blocks. Whatever Lanczos's method has guessed, a c that is too small has no factor. Mean squares of rows beyond
    2^-40 and 2^40 are left out, so that underflow is below 2^-50 of the norm.
    Source: the factorisation as a proof, Rump, 2006.
    """
    w = weight.detach()[None]
    w = w if w.shape[1] <= w.shape[2] else w.mT
    (rows, columns), norm = w.shape[1:], frobenius(w)
    mean = float(norm) ** 2 / rows
    if rows < SMALL or not 2.0**-40 < mean < 2.0**40:
        return None
    if columns > MOST_TERMS:
        w = w.double()
    s = gram(w)
    off = float(lost(columns, unit_of(w), frobenius(s), norm * magnitude(w)))
    guess, unit = _lanczos(s[0]), 2.0**-45
    if off > ROUNDED * guess:
        return None if w.dtype == torch.float64 else close_norm(weight.double())
    for margin in MARGINS:
        c = guess * (1 + margin)
        shifted = -s[0].double()
        shifted.diagonal().add_(c)
        if not int(torch.linalg.cholesky_ex(shifted)[1]):
            return math.sqrt(c * (1 + 2 * (rows + 3) * rows * unit) + off) * (1 + 1e-9)
    return None


def _lanczos(s: Tensor) -> float:
    """A lower bound of the largest eigenvalue of a positive semidefinite matrix, about, and close to it."""
    # The start is fixed, so that norms can be repeated, and far from even, as the eigenvectors of patterns are not.
    v = torch.cos(torch.arange(len(s), dtype=torch.float64, device=s.device) ** 2).to(s.dtype)
    v, before, ahead = v / v.norm(), torch.zeros_like(v), 0.0
    diagonal, beside = [], []
    with exact_float32(s):
        for _ in range(STEPS):
            u = s @ v - ahead * before
            diagonal.append(float(u @ v))
            u -= diagonal[-1] * v
            ahead = float(u.norm())
            if not ahead > 1e-6 * abs(diagonal[-1]):
                break
            beside.append(ahead)
            before, v = v, u / ahead
    t = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    for i, b in enumerate(beside[: len(diagonal) - 1]):
        t[i, i + 1] = t[i + 1, i] = b
    return float(torch.linalg.eigvalsh(t)[-1])
