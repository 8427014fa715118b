"""Projection onto orthogonal matrices, and onto kernels of orthogonal patch matrices."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dplip.constraints.base import Constraint
from dplip.errors import ConfigurationError
from dplip.norms.cache import active_cache, distance
from dplip.norms.products import CHUNK, exact_float32, frobenius, magnitude, product, product_error


class Orthogonal(Constraint):
    """Weights with orthonormal rows, or columns if there are fewer of them: every singular value is 1.

    A kernel is treated as the matrix (out, in * taps) of its patches, divided by the root of the number of patches
    that share an entry: then the convolution has norm at most 1, and it is orthogonal where the stride is the kernel.

    Method: the polar factor by SVD; within a training step by passes (:func:`_pass`), whose last one certifies itself.
    """

    TARGET = 0.02  # root mean square of the eigenvalues of W W^T - I at which the passes end
    PASSES = 12  # each lets small singular values grow by half; a weight that needs more has its SVD taken

    def project(self, weight: Tensor, layer: nn.Module) -> None:
        cache = active_cache()
        key = id(weight)  # the key by which matrix_norms looks up a linear layer's norm
        if cache is not None and cache.near_projection(key, weight):
            return
        scale = patch_scale(layer)
        groups = layer.groups if isinstance(layer, (nn.Conv1d, nn.Conv2d)) else 1
        matrix = weight.detach().unflatten(0, (groups, -1)).flatten(2)
        if scale != 1.0:
            matrix = matrix / scale
        wide = matrix if matrix.shape[1] <= matrix.shape[2] else matrix.mT
        projected, bound = (None, math.inf) if cache is None else self._by_passes(wide)
        if projected is None:
            projected = _polar(wide)
        if wide is not matrix:
            projected = projected.mT
        weight.detach().copy_((projected * scale if scale != 1.0 else projected).reshape(weight.shape))
        if cache is not None and math.isfinite(bound):
            stored = distance(weight.detach().to(projected.dtype).reshape(projected.shape), projected * scale) / scale
            cache.certify(key, weight, bound + stored, projected=True)

    def _by_passes(self, w: Tensor) -> tuple[Tensor | None, float]:
        """The polar factors of matrices with no more rows than columns, and a bound of their norms; None: too far."""
        w = _computed(w)
        for _ in range(self.PASSES):
            w, bound, error = _pass(w)
            if not math.isfinite(bound):
                break
            if error <= self.TARGET:
                return w, bound
        return None, math.inf


LOOSENESS = 0.002
"""How far beyond 1 the proved rounding of a float32 pass may bring a norm; a weight with more is taken in float64."""


def _computed(w: Tensor) -> Tensor:
    """The matrices in float32 if the proof of a pass is tight enough in that type, else in float64."""
    if w.dtype == torch.float64:
        return w
    w = w.float()
    rows, columns = w.shape[-2:]
    loose = (CHUNK + 2) * 2.0**-25 * rows * magnitude(w) / frobenius(w)  # of a Gram matrix, the most of a pass
    return w if columns <= 2**15 and bool((loose < LOOSENESS).all()) else w.double()


def _pass(w: Tensor) -> tuple[Tensor, float, float]:
    """Bjorck's iterate ``X - (X X^T - I) X / 2`` of X = W / c, a bound of its norm, and the error it leaves.

    The error is the root mean square of the eigenvalues of ``X X^T - I``. The bound is infinite where the mean square
    of a row is not between 2^-40 and 2^40, within which what underflows is less than 2^-60 of W.

    Proof: a singular value s of X goes to ``1.5 s - 0.5 s^3``, and [0, 2] to [-1, 1]. Let S be the computed Gram
    matrix of m rows, off by at most r (partial sums are positive semidefinite, so smaller than the whole); E the
    computed ``S / c^2 - I``, off by at most ``d = r / c^2 + u (2 |E|_F + sqrt m)``. So ``|X|^2 <= 1 + |E| + d``, where
    |E| is at most |E|_F, and at most the root of |E^2|_F. With c^2 the mean eigenvalue, or larger to keep |X|^2 at 3,
    the iterate with E in place of ``X X^T - I`` has a norm of at most ``1 + d |X| / 2``. Half of the rounding of E X
    is added to that, and 4 u times its Frobenius norm, at most 1.01 sqrt m, for the sum and the division by c.
    Source: Bjorck and Bowie, 1971.
    """
    unit, rows = torch.finfo(w.dtype).eps / 2, w.shape[-2]
    gram, spread = product(w, w.mT), magnitude(w)
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(-1, dtype=torch.float64)
    if not bool(((mean > 2.0**-40) & (mean < 2.0**40)).all()):
        return w, math.inf, math.inf
    lost = product_error(w, frobenius(gram), spread)

    def residual(inverse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """E for ``1 / c^2``, its Frobenius norm, and what it is off by."""
        e = gram * inverse[:, None, None]
        e.diagonal(dim1=-2, dim2=-1).sub_(1)
        norm = frobenius(e)
        return e, norm, lost * inverse + unit * (2 * norm + math.sqrt(rows))

    inverse = mean.reciprocal().to(w.dtype)
    e, norm, off = residual(inverse)
    top = norm
    if bool((norm > 2).any()):
        with exact_float32(e):
            fourth = frobenius(e @ e) + rows * unit * norm**2
        top = torch.minimum(norm, fourth.sqrt())
    top = (1 + top + off) / inverse  # of the eigenvalues of W W^T
    if bool((top * inverse > 3).any()):
        inverse = torch.minimum(inverse, (3 / top).to(w.dtype))
        e, norm, off = residual(inverse)
    root = inverse.double().sqrt()
    size = top.sqrt() * root
    lost = product_error(e, norm * size / root, spread) * root
    bound = float((1 + (off * size + lost) / 2).max()) + 4 * unit * math.sqrt(rows)
    if not (bound < 1.01 and float(size.max()) < 2):
        return w, math.inf, math.inf
    error = float(norm.max()) / math.sqrt(rows)
    w = torch.add(w, product(e, w), alpha=-0.5).mul_(root.to(w.dtype)[:, None, None])
    # An eigenvalue 1 + e goes to 1 - 0.75 e^2 + 0.25 e^3, and fourth powers of noise's e have a mean of 2 error^4.
    return w, bound, 1.06 * error**2


def _polar(w: Tensor) -> Tensor:
    """The nearest matrices with orthonormal rows: U V^T of the singular value decomposition."""
    if not bool(w.isfinite().all()):
        raise ConfigurationError("A weight is NaN or infinite, so it cannot be projected: restore finite values.")
    peak = w.abs().amax((1, 2), keepdim=True).double()
    if not bool((peak > 0).all()):
        raise ConfigurationError("A weight is all zeros, which has no nearest orthogonal one: initialise it.")
    u, _, v = torch.linalg.svd(w.double() / peak, full_matrices=False)
    return (u @ v).to(w.dtype)


def patch_scale(layer: nn.Module) -> float:
    """One over the root of the largest number of patches of a convolution that share an entry; 1 for a matrix."""
    if not isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        return 1.0
    shared = 1
    for k, s, d in zip(layer.kernel_size, layer.stride, layer.dilation, strict=True):
        shared *= -(-k // (s // math.gcd(s, d)))  # taps t with t d = entry mod s
    return 1.0 / math.sqrt(shared)
