"""Operator norms of matrices, certified from above."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from dplip.errors import ConfigurationError
from dplip.norms.cache import carried, sum_slack
from dplip.norms.close import close_norm
from dplip.norms.operator_norms import OperatorNorms
from dplip.norms.value_norms import require_real

EIGENVALUE_SLACK = 4e-6
"""Relative slack for the rounding of a float64 eigenvalue, and of a weight that is stored in float32 afterwards."""


def scale_of(weight: Tensor) -> float:
    """The largest entry of a weight; refuses one without an operator norm."""
    scale = float(weight.abs().max()) if weight.numel() else 0.0
    if not math.isfinite(scale):
        raise ConfigurationError(
            "A weight is NaN or infinite, so it has no operator norm: training has diverged, or such a weight was "
            "loaded. Restore finite values, and take smaller steps (lr=), orthogonal layers, or layers whose bounds do "
            "not grow with the weights, dplip.nn.bound_gradients(model)."
        )
    return scale


def spectral_norm(weight: Tensor) -> float:
    """An upper bound on the largest singular value of a matrix: its float64 value times ``1 + 4e-6``.

    Proof: the largest eigenvalue of the Gram matrix of the smaller side is the square of the norm. Its relative
    backward error is a small multiple of ``n 2^-53``, far below the slack.

    Raises:
        ConfigurationError: the weight holds NaN or infinity.
    """
    w = weight.detach().double()
    scale = scale_of(w)
    if scale == 0.0:
        return 0.0
    w = w / scale
    gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
    return scale * math.sqrt(float(torch.linalg.eigvalsh(gram)[-1])) * (1 + EIGENVALUE_SLACK)


def greatest(terms: Tensor, dim: int) -> float:
    """The largest sum of nonnegative terms along an axis, from above."""
    return float(terms.sum(dim).max()) * sum_slack(terms, terms.shape[dim])


def greatest_root(squares: Tensor, dim: int) -> float:
    # A square that underflows is below the square of the smallest normal number.
    tiny = squares.shape[dim] * torch.finfo(squares.dtype).tiny
    return math.sqrt(greatest(squares, dim) + tiny)


_FIXED: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # tensor -> (a copy of its values, their norms)


def of_fixed(tensor: Tensor, norms: Callable[[Tensor], OperatorNorms]) -> OperatorNorms:
    """The norms of a fixed matrix or stack of matrices, computed by ``norms`` and again only if the values change.

    The norms of a tensor on the meta device, which has no values, are infinite.
    """
    if tensor.is_meta:
        return OperatorNorms()
    values, found = _FIXED.get(tensor, (None, None))
    if found is None or not torch.equal(values, tensor):  # torch's version counter misses edits through .data
        found = norms(tensor)
        _FIXED[tensor] = tensor.detach().clone(), found
    return found


def matrix_norms(weight: Tensor) -> OperatorNorms:
    """The induced norms of ``x -> weight @ x`` for a weight of shape (out, in).

    Proof: ``||W||_{1->p}`` is the largest lp norm of a column, ``||W||_{p->inf}`` the largest dual norm of a row.
    """
    require_real(weight)
    w = weight.detach()
    if not w.numel():
        return OperatorNorms.diagonal(0.0)
    if w.is_meta:  # a weight without values has no known norm
        return OperatorNorms()
    two_two = carried(id(weight), w, lambda: spectral_norm(w), close=lambda: close_norm(w))
    magnitudes, squares = w.abs(), w.square()
    return OperatorNorms(
        one_one=greatest(magnitudes, 0),
        one_two=greatest_root(squares, 0),
        one_inf=float(magnitudes.max()),
        two_two=two_two,
        two_inf=greatest_root(squares, 1),
        inf_inf=greatest(magnitudes, 1),
    )
