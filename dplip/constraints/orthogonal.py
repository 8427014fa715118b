"""Projection onto orthogonal matrices, and onto kernels of orthogonal patch matrices."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dplip.constraints.base import Constraint
from dplip.errors import ConfigurationError
from dplip.norms.cache import active_cache


class Orthogonal(Constraint):
    """Weights with orthonormal rows, or columns if there are fewer of them: every singular value is 1.

    A kernel is treated as the matrix (out, in * taps) of its patches, divided by the root of the number of patches
    that share an entry: then the convolution has norm at most 1, and it is orthogonal where the stride is the kernel.

    Method: the polar factor by SVD; within a training step, Bjorck's iteration ``W <- 1.5 W - 0.5 W W^T W``. It acts on
    each singular value as s -> 1.5 s - 0.5 s^3, which maps [0, 2] into [0, 1]; and ``|W|^2 <= 1 + |W W^T - I|_F``, so a
    Gram matrix within 3 of I certifies that every iterate has norm at most 1.
    Source: Bjorck and Bowie, 1971.
    """

    TARGET = 0.01  # root mean square of the eigenvalues of W W^T - I at which the iteration stops
    ITERATE_SLACK = 1e-4  # float32 rounding of an iterate; observed 1e-5

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
        projected = None if cache is None else self._iterate(wide)
        if projected is None:
            projected = _polar(wide)
        if wide is not matrix:
            projected = projected.mT
        weight.detach().copy_((projected * scale if scale != 1.0 else projected).reshape(weight.shape))
        if cache is not None:
            cache.certify(key, weight, 1.0 + self.ITERATE_SLACK, projected=True)

    def _iterate(self, w: Tensor) -> Tensor | None:
        """Bjorck's iterate of matrices with no more rows than columns; None where the start has no certificate."""
        gram = w @ w.mT
        identity = torch.eye(gram.shape[-1], dtype=w.dtype, device=w.device)
        residual = float(torch.linalg.matrix_norm(gram - identity, dtype=torch.float64).max())
        error = residual / math.sqrt(gram.shape[-1])
        if not (residual < 3.0 and error < 0.5):
            return None
        while True:
            w = torch.baddbmm(w, gram, w, beta=1.5, alpha=-0.5)
            error = 0.75 * error**2 + 0.25 * error**3  # an eigenvalue 1 + e of W W^T goes to 1 - 0.75 e^2 + 0.25 e^3
            if error <= self.TARGET:
                return w
            gram = w @ w.mT


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
