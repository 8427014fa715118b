"""Projection onto orthogonal matrices, and onto kernels of orthogonal patch matrices."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dplip.constraints.base import Constraint
from dplip.constraints.bjorck import iterate
from dplip.errors import ConfigurationError
from dplip.norms.cache import active_cache, distance


class Orthogonal(Constraint):
    """Weights with orthonormal rows, or columns if there are fewer of them: every singular value is 1.

    A kernel is treated as the matrix (out, in * taps) of its patches, divided by the root of the number of patches
    that share an entry: then the convolution has norm at most 1, and it is orthogonal where the stride is the kernel.

    Method: the polar factor by SVD; within a training step by Bjorck's iteration, whose last iterate is certified by
    the Gram matrix that it was made with (:func:`dplip.constraints.bjorck.iterate`).
    """

    TARGET = 0.02  # root mean square of the eigenvalues of W W^T - I at which the iteration stops
    ITERATIONS = 12  # each lets small singular values grow by half; of a weight that needs more the SVD is taken

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
        projected, bound = (None, math.inf) if cache is None else self._iterate(wide)
        if projected is None:
            projected = _polar(wide)
        if wide is not matrix:
            projected = projected.mT
        weight.detach().copy_((projected * scale if scale != 1.0 else projected).reshape(weight.shape))
        if cache is not None and math.isfinite(bound):
            if scale != 1.0 or projected.dtype != weight.dtype:  # what was stored is rounded
                bound += distance(weight.detach().reshape(projected.shape) / scale, projected)
            cache.certify(key, weight, bound, projected=True)

    def _iterate(self, w: Tensor) -> tuple[Tensor | None, float]:
        """Iterates of matrices with no more rows than columns, and a bound of their norms; None: they are too far."""
        w = w if w.dtype == torch.float64 else w.float()
        for _ in range(self.ITERATIONS):
            w, bound, error = iterate(w)
            if not math.isfinite(bound):
                break
            if error <= self.TARGET:
                return w, bound
        return None, math.inf


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
