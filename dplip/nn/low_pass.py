"""Fixed layers that keep the low frequencies of an image, so that a learned layer behind them has fewer weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple
from typing import cast

import torch
from torch import Tensor, nn

from dplip.errors import ConfigurationError
from dplip.norms import Norms, OperatorNorms, matrix_norms, of_fixed, times
from dplip.rules import Pullback, rule, through


class LowPass(nn.Module):
    """The ``keep`` x ``keep`` lowest frequencies of each channel, by the orthonormal discrete cosine transform.

    Args:
        height, width: size of the images.
        keep: frequencies kept along each axis, at most the smaller of the two sizes.

    Shape: (..., height, width) to (..., keep, keep).

    Raises:
        ConfigurationError: a size below 1, or more frequencies than pixels.

    Guarantee: 1-Lipschitz in l2, since its rows are orthonormal. It has no parameters.
    Source: Ahmed, Natarajan, Rao, "Discrete cosine transform", 1974 (type II).
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, height: int, width: int, keep: int) -> None:
        super().__init__()
        self.height, self.width, self.keep = height, width, keep
        if not 1 <= keep <= min(height, width):
            raise ConfigurationError(
                f"keep={keep}: of images of {height} x {width} from 1 to {min(height, width)} frequencies can be kept."
            )
        self.register_buffer("rows", _cosines(height, keep), persistent=False)
        self.register_buffer("columns", _cosines(width, keep), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim < 2 or x.shape[-2:] != (self.height, self.width):
            raise ConfigurationError(f"shape={tuple(x.shape)}: LowPass is for (..., {self.height}, {self.width}).")
        return self.rows.to(x.dtype) @ x @ self.columns.to(x.dtype).mT

    def extra_repr(self) -> str:
        return f"{self.height}, {self.width}, keep={self.keep}"


def _cosines(size: int, keep: int) -> Tensor:
    """The first ``keep`` rows of the orthonormal DCT-II."""
    k, i = torch.arange(keep, dtype=torch.float64), torch.arange(size, dtype=torch.float64)
    table = torch.cos(math.pi / size * torch.outer(k, i + 0.5)) * math.sqrt(2 / size)
    table[0] /= math.sqrt(2)
    return table.float()


def _norms(module: LowPass) -> OperatorNorms:
    """The norms of x -> a x b^T, the Kronecker product of a and b: each is the product of their norms."""
    a, b = (of_fixed(t, matrix_norms) for t in (module.rows, module.columns))
    return OperatorNorms(*(float(times(p, q)) for p, q in zip(astuple(a), astuple(b), strict=True)))


@rule(LowPass)
def low_pass(module: LowPass, x: Norms) -> tuple[Norms, Pullback]:
    return through(_norms(module), x, (*x.shape[:-2], module.keep, module.keep))


class ChannelLowPass(nn.Module):
    """:class:`LowPass` with a number of frequencies for each channel, such as fewer for colour than for light.

    Args:
        height, width: size of the images.
        keep: for each channel, the number of frequencies kept along each axis.

    Shape: (batch, channels, height, width) to (batch, sum of the squares of ``keep``).

    Guarantee: 1-Lipschitz in l2: a :class:`LowPass` transforms each channel by itself.
    """

    def __init__(self, height: int, width: int, keep: Sequence[int]) -> None:
        super().__init__()
        self.channels = nn.ModuleList(LowPass(height, width, k) for k in keep)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != len(self.channels):
            raise ConfigurationError(
                f"shape={tuple(x.shape)}: ChannelLowPass is for (batch, {len(self.channels)}, height, width)."
            )
        parts = [low_pass(x[:, i]).flatten(1) for i, low_pass in enumerate(self.channels)]
        return torch.cat(parts, 1)


@rule(ChannelLowPass)
def channel_low_pass(module: ChannelLowPass, x: Norms) -> tuple[Norms, Pullback]:
    norms = OperatorNorms.block_diagonal(_norms(cast(LowPass, m)) for m in module.channels)
    return through(norms, x, (sum(cast(LowPass, m).keep ** 2 for m in module.channels),))
