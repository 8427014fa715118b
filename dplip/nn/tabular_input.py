"""The first layer for tables: it clamps and scales each column by its public range."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dplip.errors import ConfigurationError
from dplip.norms import Norms, OperatorNorms
from dplip.rules import Pullback, refuse_module, rule

ENCODING_SLACK = 2e-6
"""Relative slack for the float32 rounding of an encoded row, and for block sums up to 1 + 1e-6, which count as 1."""


class TabularInput(nn.Module):
    """Map numeric columns into [-1/2, 1/2] by their public ranges, and one-hot blocks into the capped simplex.

    Args:
        low, high: public ends of the range of each numeric column; these columns come first.
        groups: sizes of the one-hot blocks that follow, one for each categorical column.
        log: positions of numeric columns that are scaled by ``log(1 + x - low)``, for long tails.

    Shape: (batch, len(low) + sum(groups)) to the same.

    Guarantee: for inputs without NaN, numeric outputs lie in [-1/2, 1/2] and each block has l1 norm at most 1, so the
    output has ``l2^2 <= len(low) / 4 + len(groups)``; one-hot rows are unchanged. Each numeric output depends on its
    own column alone and does not decrease in it, so that monotonicity in the raw columns is kept.
    """

    low: Tensor
    high: Tensor
    is_log: Tensor

    def __init__(
        self, low: Sequence[float], high: Sequence[float], groups: Sequence[int] = (), log: Sequence[int] = ()
    ) -> None:
        super().__init__()
        if len(low) != len(high) or len(low) + len(groups) == 0:
            raise ConfigurationError(f"low and high of lengths {len(low)}, {len(high)}: give both for each column.")
        for i, (a, b) in enumerate(zip(low, high, strict=True)):
            if not (math.isfinite(a) and math.isfinite(b) and a < b):
                raise ConfigurationError(f"column {i}: low={a}, high={b} is no range. Give finite public bounds.")
        if any(g < 1 for g in groups) or any(not 0 <= i < len(low) for i in log):
            raise ConfigurationError(f"groups={list(groups)}, log={list(log)}: give sizes >= 1 and numeric columns.")
        self.groups = tuple(int(g) for g in groups)
        self.register_buffer("low", torch.tensor([float(v) for v in low]))
        self.register_buffer("high", torch.tensor([float(v) for v in high]))
        self.register_buffer("is_log", torch.tensor([i in set(log) for i in range(len(low))], dtype=torch.bool))

    def slopes(self) -> tuple[Tensor, Tensor]:
        """The least and the largest slope of each numeric column inside its range, float64."""
        width = (self.high - self.low).double()
        line, top = 1 / width, 1 / torch.log1p(width)
        return torch.where(self.is_log, top / (1 + width), line), torch.where(self.is_log, top, line)

    def forward(self, x: Tensor) -> Tensor:
        n = len(self.low)
        if x.shape[1:] != (n + sum(self.groups),):
            raise ConfigurationError(f"shape={tuple(x.shape)}: the table has {n + sum(self.groups)} features a row.")
        low, high = self.low.to(x.dtype), self.high.to(x.dtype)
        above, width = torch.minimum(torch.maximum(x[:, :n], low), high) - low, high - low
        # The logarithm is computed of the log columns only, so that the others have no gradient through it.
        logged = torch.log1p(torch.where(self.is_log, above, 0.0)) / torch.log1p(width)
        parts = [torch.where(self.is_log, logged, above / width) - 0.5]
        if self.groups:
            parts += [capped_simplex(block) for block in x[:, n:].clamp(0, 1).split(self.groups, dim=1)]
        return torch.cat(parts, dim=1)

    def extra_repr(self) -> str:
        return f"numeric={len(self.low)}, groups={list(self.groups)}"


def capped_simplex(rows: Tensor) -> Tensor:
    """The Euclidean projection of nonnegative rows onto the rows with a sum of at most 1."""
    over = rows.detach().sum(1, keepdim=True) > 1 + 1e-6
    if not bool(over.any()):
        return rows
    descending = rows.detach().sort(dim=1, descending=True).values
    excess = descending.cumsum(1) - 1
    rank = torch.arange(1, rows.shape[1] + 1, device=rows.device, dtype=rows.dtype)
    last = (descending * rank > excess).sum(1, keepdim=True).clamp_min(1) - 1
    kept = (rows.detach() > excess.gather(1, last) / (last + 1)).to(rows.dtype)
    level = ((rows * kept).sum(1, keepdim=True) - 1) / kept.sum(1, keepdim=True).clamp_min(1)
    return torch.where(over, (rows - level) * kept, rows)


@rule(TabularInput)
def tabular_input(module: TabularInput, x: Norms) -> tuple[Norms, Pullback]:
    numeric, blocks = len(module.low), len(module.groups)
    if x.shape != (numeric + sum(module.groups),):
        refuse_module(module, f"is given one example of shape {x.shape}.", "Give it one row of the table.")
    output = Norms(
        x.shape,
        (numeric / 2 + blocks) * (1 + ENCODING_SLACK),
        math.sqrt(numeric / 4 + blocks) * (1 + ENCODING_SLACK),
        (1.0 if blocks else 0.5) * (1 + ENCODING_SLACK),
    )
    slope = float(module.slopes()[1].max()) * (1 + ENCODING_SLACK) if numeric else 0.0
    # A block's Jacobian is the clamp's (a diagonal of zeros and ones), times I_A - 1 1^T / |A| on the positive entries
    # A where the block is projected: its l2 norm is at most 1, its absolute row and column sums 2 (1 - 1 / |A|).
    spread = 2.0 if blocks else 0.0
    flat = 1.0 if blocks else 0.0
    jacobian = OperatorNorms(one_one=max(slope, spread), two_two=max(slope, flat), inf_inf=max(slope, spread))
    return output, lambda v: ((jacobian.T(v, x.shape),), {})
