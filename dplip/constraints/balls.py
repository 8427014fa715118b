"""Projections of a weight onto balls of norms of its entries, rows or columns."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dplip.constraints.base import Constraint
from dplip.errors import ConfigurationError
from dplip.validate import positive

PROJECTION_SLACK = 1e-7
"""Relative distance inside the radius to which a row is projected: more than the float32 rounding of its entries."""


class Ball(Constraint):
    """Base class of the sets of weights with a norm of at most ``radius``."""

    def __init__(self, radius: float = 1.0) -> None:
        super().__init__()
        self.radius = positive(radius)

    def extra_repr(self) -> str:
        return f"radius={self.radius:g}"


class FrobeniusBall(Ball):
    """Weights with Frobenius norm at most ``radius``."""

    axes = 0

    def project(self, weight: Tensor, layer: nn.Module) -> None:
        norm = float(torch.linalg.vector_norm(weight.detach(), dtype=torch.float64))
        if norm > self.radius:
            weight.detach().mul_(self.radius / norm)


class EntryBall(Ball):
    """Weights with entries of at most ``radius`` in absolute value: the norm from l1 to l-infinity."""

    axes = 0

    def project(self, weight: Tensor, layer: nn.Module) -> None:
        weight.detach().clamp_(-self.radius, self.radius)


class RowL1Ball(Ball):
    """Weights whose rows have l1 norm at most ``radius``: the norm from l-infinity to l-infinity."""

    def project(self, weight: Tensor, layer: nn.Module) -> None:
        rows = weight.detach().flatten(1)
        weight.detach().copy_(l1_projection(rows, self.radius).reshape(weight.shape))


class RowL2Ball(Ball):
    """Weights whose rows have l2 norm at most ``radius``: the norm from l2 to l-infinity."""

    def project(self, weight: Tensor, layer: nn.Module) -> None:
        rows = weight.detach().flatten(1)
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64)
        inside = self.radius * (1 - PROJECTION_SLACK)
        rows.mul_((inside / norms.clamp_min(inside)).to(rows.dtype))


class ColumnL1Ball(Ball):
    """Weights whose columns have l1 norm at most ``radius``: the norm from l1 to l1 of a matrix."""

    def project(self, weight: Tensor, layer: nn.Module) -> None:
        if weight.ndim != 2:
            raise ConfigurationError(f"shape={tuple(weight.shape)}: columns are those of a matrix.")
        weight.detach().copy_(l1_projection(weight.detach().T, self.radius).T)


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
    excess = projected.abs().sum(1, keepdim=True) / (radius * (1 - PROJECTION_SLACK))
    return (projected / excess.clamp_min(1.0)).to(dtype)
