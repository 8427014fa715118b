"""Explicit operators of convolutions, and their exact norms."""

import math
from collections.abc import Sequence
from math import inf

import torch
from torch import Tensor, nn

import dplip
from dplip.norms import convolution_norms

FIELDS = {
    (1.0, 1.0): "one_one",
    (1.0, 2.0): "one_two",
    (1.0, inf): "one_inf",
    (2.0, 2.0): "two_two",
    (2.0, inf): "two_inf",
    (inf, inf): "inf_inf",
}


def true_norm(weight: Tensor) -> float:
    return float(torch.linalg.matrix_norm(weight.double(), 2))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def explicit(layer: nn.Conv1d | nn.Conv2d, size: Sequence[int]) -> Tensor:
    """The matrix (outputs x inputs) of a convolution without bias, by its action on the basis."""
    n = layer.in_channels * math.prod(size)
    return layer(torch.eye(n, dtype=torch.float64).reshape(n, layer.in_channels, *size)).detach().reshape(n, -1).T


def sides(layer: nn.Conv1d | nn.Conv2d) -> list[tuple[int, int]]:
    """Entries before and after each axis; an odd number of them has the larger half after."""
    if layer.padding == "same":
        spans = [d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        return [(span // 2, span - span // 2) for span in spans]
    return [(p, p) for p in layer.padding]


def bounds_of(layer: nn.Conv1d | nn.Conv2d, size: Sequence[int] | None) -> dplip.OperatorNorms:
    padding = sides(layer)
    circular = layer.padding_mode == "circular" and any(sum(p) for p in padding)
    return convolution_norms(layer.weight, size, layer.stride, padding, layer.dilation, layer.groups, circular)
