"""Projections of weights after a step: post-processing of what is already private, so they cost no privacy.

A constraint is attached to a stock layer as a child module without parameters. It adds nothing to ``state_dict``,
and goes along with ``deepcopy``, ``torch.save`` and ``.to``. Bounds never rest on it: they are computed from the
weight that is there, and a constraint only keeps them small.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from dplip import operators
from dplip.errors import ConfigurationError

M = TypeVar("M", bound=nn.Module)


class Constraint(nn.Module):
    """A set of weights, and the projection onto it.

    Attributes:
        axes: the least number of axes of a parameter that it is for.
    """

    axes = 2

    def project(self, weight: Tensor, layer: nn.Module) -> None:
        """Move ``weight``, a parameter of ``layer``, into the set, in place."""
        raise NotImplementedError


class Constraints(nn.ModuleDict):
    """The constraints of one layer, by the name of the parameter."""


def constrain(layer: M, name: str, constraint: Constraint) -> M:
    """Attach a constraint to a parameter of a layer, and project it at once.

    Args:
        layer: a module that holds the parameter itself.
        name: the parameter's name in the layer, such as ``"weight"``.
        constraint: such as ``Orthogonal()``.

    Returns:
        The layer.

    Raises:
        ConfigurationError: the layer has no such parameter.
    """
    if not isinstance(layer._parameters.get(name), nn.Parameter):
        raise ConfigurationError(
            f"name={name!r}: {type(layer).__name__} has no such parameter. It has {list(layer._parameters)}."
        )
    weight, held = layer.get_parameter(name), layer._modules.get("constraints")
    if not isinstance(held, Constraints) and hasattr(layer, "constraints"):
        raise ConfigurationError(f"{type(layer).__name__} uses the name 'constraints' itself: rename that.")
    if weight.ndim < constraint.axes:
        raise ConfigurationError(
            f"{name} has shape {tuple(weight.shape)}: {type(constraint).__name__} is for a matrix or a kernel."
        )
    if not bool(weight.isfinite().all()):
        raise ConfigurationError(f"{name} is NaN or infinite: restore finite values.")
    with torch.no_grad():
        constraint.project(weight, layer)
    if not isinstance(held, Constraints):
        held = Constraints()
        layer.add_module("constraints", held)
    held[name] = constraint
    return layer


@torch.no_grad()
def project(model: nn.Module) -> None:
    """Project every constrained parameter of a model onto its set."""
    for layer in model.modules():
        held = layer._modules.get("constraints")
        if isinstance(held, Constraints):
            for name, constraint in held.items():
                if isinstance(constraint, Constraint):
                    constraint.project(layer.get_parameter(name), layer)


def _groups(layer: nn.Module) -> int:
    return layer.groups if isinstance(layer, (nn.Conv1d, nn.Conv2d)) else 1


class Orthogonal(Constraint):
    """Weights with orthonormal rows, or columns where they are fewer: every singular value is 1.

    A kernel is treated as the matrix (out, in * taps) of its patches, divided by the root of the number of patches
    that share an entry: then the convolution has norm at most 1, and it is orthogonal where the stride is the kernel.

    Method: the polar factor by SVD; and within a training step Bjorck's iteration ``W <- 1.5 W - 0.5 W W^T W``, which
    certifies itself. It acts on each singular value as s -> 1.5 s - 0.5 s^3, which maps [0, 2] into [0, 1]; and
    ``|W|^2 <= 1 + |W W^T - I|_F``, so a Gram matrix within 3 of I certifies that every iterate has norm at most 1.
    Source: Bjorck and Bowie, 1971.
    """

    TARGET = 0.01  # root mean square of the eigenvalues of W W^T - I at which the iteration stops
    ROUNDING = 1e-4  # float32 rounding of an iterate; observed 1e-5

    def project(self, weight: Tensor, layer: nn.Module) -> None:
        cache = operators.active_cache()
        key = id(weight)  # under which operators.matrix looks up a linear layer's norm
        if cache is not None and cache.near_projection(key, weight):
            return
        scale = _patch_scale(layer)
        matrix = weight.detach().unflatten(0, (_groups(layer), -1)).flatten(2)
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
            cache.certify(key, weight, 1.0 + self.ROUNDING, projected=True)

    def _iterate(self, w: Tensor) -> Tensor | None:
        """Bjorck's iterate of matrices with no more rows than columns; None where the start is not certified."""
        gram = w @ w.mT
        identity = torch.eye(gram.shape[-1], dtype=w.dtype, device=w.device)
        residual = float(torch.linalg.matrix_norm(gram - identity, dtype=torch.float64).max())
        error = residual / math.sqrt(gram.shape[-1])
        if not (residual < 3.0 and error < 0.5):
            return None
        while True:
            w = torch.baddbmm(w, gram, w, beta=1.5, alpha=-0.5)
            error = 0.75 * error**2 + 0.25 * error**3  # what the map does to an eigenvalue 1 + error of W W^T
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


def _patch_scale(layer: nn.Module) -> float:
    """One over the root of the largest number of patches of a convolution that hold one entry; 1 for a matrix."""
    if not isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        return 1.0
    shared = 1
    for k, s, d in zip(layer.kernel_size, layer.stride, layer.dilation, strict=True):
        shared *= -(-k // (s // math.gcd(s, d)))  # taps t with t d = entry mod s
    return 1.0 / math.sqrt(shared)


class SpectralBall(Constraint):
    """Weights with operator norm at most ``radius`` (of the convolution, at every input size, for a kernel).

    A matrix is projected in the Euclidean sense (its singular values are cut at the radius), a kernel is scaled.
    """

    def __init__(self, radius: float = 1.0) -> None:
        super().__init__()
        self.radius = positive(radius)

    def project(self, weight: Tensor, layer: nn.Module) -> None:
        w = weight.detach()
        if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
            sides = [(0, 0)] * len(layer.kernel_size)
            norm = operators.convolution(weight, None, layer.stride, sides, layer.dilation, layer.groups).two_two
            if norm > self.radius:
                w.mul_(self.radius / norm)
            return
        matrix = w.flatten(1)
        if operators.matrix(matrix if w.ndim != 2 else weight).two_two <= self.radius:
            return
        wide = matrix.double() if matrix.shape[0] <= matrix.shape[1] else matrix.double().mT
        values, vectors = torch.linalg.eigh(wide @ wide.mT)
        cut = self.radius / values.clamp_min(self.radius**2).sqrt()
        wide = (vectors * cut) @ (vectors.mT @ wide)
        matrix = wide if w.flatten(1).shape[0] <= w.flatten(1).shape[1] else wide.mT
        w.copy_(matrix.reshape(w.shape))

    def extra_repr(self) -> str:
        return f"radius={self.radius:g}"


class FrobeniusBall(Constraint):
    """Weights with Frobenius norm at most ``radius``."""

    axes = 0

    def __init__(self, radius: float = 1.0) -> None:
        super().__init__()
        self.radius = positive(radius)

    def project(self, weight: Tensor, layer: nn.Module) -> None:
        norm = float(torch.linalg.vector_norm(weight.detach(), dtype=torch.float64))
        if norm > self.radius:
            weight.detach().mul_(self.radius / norm)

    def extra_repr(self) -> str:
        return f"radius={self.radius:g}"


class EntryBall(Constraint):
    """Weights whose every entry is at most ``radius`` in absolute value: the norm from l1 to l-infinity."""

    axes = 0

    def __init__(self, radius: float = 1.0) -> None:
        super().__init__()
        self.radius = positive(radius)

    def project(self, weight: Tensor, layer: nn.Module) -> None:
        weight.detach().clamp_(-self.radius, self.radius)

    def extra_repr(self) -> str:
        return f"radius={self.radius:g}"


class RowL1Ball(Constraint):
    """Weights whose rows have l1 norm at most ``radius``: the norm from l-infinity to l-infinity."""

    def __init__(self, radius: float = 1.0) -> None:
        super().__init__()
        self.radius = positive(radius)

    def project(self, weight: Tensor, layer: nn.Module) -> None:
        rows = weight.detach().flatten(1)
        weight.detach().copy_(l1_projection(rows, self.radius).reshape(weight.shape))

    def extra_repr(self) -> str:
        return f"radius={self.radius:g}"


class RowL2Ball(Constraint):
    """Weights whose rows have l2 norm at most ``radius``: the norm from l2 to l-infinity."""

    def __init__(self, radius: float = 1.0) -> None:
        super().__init__()
        self.radius = positive(radius)

    def project(self, weight: Tensor, layer: nn.Module) -> None:
        rows = weight.detach().flatten(1)
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64)
        inside = self.radius * (1 - 1e-7)  # rounding, as for the l1 balls
        rows.mul_((inside / norms.clamp_min(inside)).to(rows.dtype))

    def extra_repr(self) -> str:
        return f"radius={self.radius:g}"


class ColumnL1Ball(Constraint):
    """Weights whose columns have l1 norm at most ``radius``: the norm from l1 to l1 of a matrix."""

    def __init__(self, radius: float = 1.0) -> None:
        super().__init__()
        self.radius = positive(radius)

    def project(self, weight: Tensor, layer: nn.Module) -> None:
        if weight.ndim != 2:
            raise ConfigurationError(f"shape={tuple(weight.shape)}: columns are those of a matrix.")
        weight.detach().copy_(l1_projection(weight.detach().T, self.radius).T)

    def extra_repr(self) -> str:
        return f"radius={self.radius:g}"


def l1_projection(rows: Tensor, radius: float) -> Tensor:
    """The Euclidean projection of each row onto the l1 ball: soft thresholding at the level that meets the radius.

    Source: Duchi, Shalev-Shwartz, Singer and Chandra, 2008.
    """
    rows, dtype = rows.double(), rows.dtype
    magnitude = rows.abs()
    descending = magnitude.sort(dim=1, descending=True).values
    excess = descending.cumsum(1) - radius
    rank = torch.arange(1, rows.shape[1] + 1, device=rows.device, dtype=rows.dtype)
    active = (descending - excess / rank > 0).sum(1, keepdim=True).clamp_min(1)
    level = (excess.gather(1, active - 1) / active).clamp_min(0)
    projected = rows.sign() * (magnitude - level).clamp_min(0)
    excess = projected.abs().sum(1, keepdim=True) / (radius * (1 - 1e-7))  # rounding, at the size of the input
    return (projected / excess.clamp_min(1.0)).to(dtype)


def positive(radius: float) -> float:
    """The radius of a ball, if it is one."""
    if not (math.isfinite(radius) and radius > 0):
        raise ConfigurationError(f"radius={radius}: the radius of a ball is a finite number > 0.")
    return float(radius)
