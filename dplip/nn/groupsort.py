"""Sorting activations, which preserve gradient norms: every Jacobian is a permutation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dplip.errors import ConfigurationError
from dplip.norms import Norms, OperatorNorms
from dplip.rules import Pullback, refuse_module, rule, through
from dplip.rules.shape import example_axis


class GroupSort(nn.Module):
    """Sort each group of ``group_size`` neighbouring entries along ``dim``, in ascending order.

    Args:
        group_size: entries in a group; must divide the size of the axis.
        dim: an axis after the batch.

    Guarantee: 1-Lipschitz in every lp norm, and it keeps every norm.
    Source: Anil, Lucas and Grosse, "Sorting out Lipschitz function approximation", 2019 (arXiv 1811.05381).
    """

    def __init__(self, group_size: int = 2, dim: int = 1) -> None:
        super().__init__()
        if group_size < 1:
            raise ConfigurationError(f"group_size={group_size}: a group holds at least one entry.")
        self.group_size, self.dim = group_size, dim

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[self.dim] % self.group_size:
            raise ConfigurationError(
                f"group_size={self.group_size} does not divide the axis of size {x.shape[self.dim]}. "
                "Choose a divisor, or change the width of the layer before."
            )
        if self.group_size == 2:
            return _sort_pairs(x, self.dim)
        groups = x.unflatten(self.dim, (-1, self.group_size))
        return groups.sort(dim=self.dim + 1 if self.dim >= 0 else self.dim).values.flatten(
            *((self.dim, self.dim + 1) if self.dim >= 0 else (self.dim - 1, self.dim))
        )

    def extra_repr(self) -> str:
        return f"group_size={self.group_size}, dim={self.dim}"


class MaxMin(GroupSort):
    """:class:`GroupSort` with groups of two."""

    def __init__(self, dim: int = 1) -> None:
        super().__init__(2, dim)


class FullSort(nn.Module):
    """Sort all entries along ``dim`` (an axis after the batch), in ascending order; 1-Lipschitz in every lp norm."""

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return x.sort(dim=self.dim).values

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


def _sort_pairs(x: Tensor, dim: int) -> Tensor:
    pairs = x.unflatten(dim, (-1, 2))
    axis = dim + 1 if dim >= 0 else dim
    a, b = pairs.select(axis, 0), pairs.select(axis, 1)
    # At ties torch halves the gradient between the two, so the Jacobian is a mean of two permutations.
    both = torch.stack((torch.minimum(a, b), torch.maximum(a, b)), dim=axis)
    return both.flatten(axis - 1, axis)


@rule(GroupSort)
def group_sort(module: GroupSort, x: Norms) -> tuple[Norms, Pullback]:
    size = x.shape[example_axis(module.dim, x)]
    if size % module.group_size:
        refuse_module(module, f"does not divide the axis of size {size}.", "Choose a group size that does.")
    return through(OperatorNorms.diagonal(1.0), x, x.shape)


@rule(FullSort)
def full_sort(module: FullSort, x: Norms) -> tuple[Norms, Pullback]:
    example_axis(module.dim, x)
    return through(OperatorNorms.diagonal(1.0), x, x.shape)
