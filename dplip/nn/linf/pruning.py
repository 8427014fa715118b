"""Branch and bound for the largest difference, which leaves out features that cannot win in any row."""

from __future__ import annotations

import torch
from torch import Tensor

PER_POINT = 100
"""The overhead of pruning for one point, in units of features."""


def candidates(x: Tensor, points: Tensor) -> Tensor:
    """A mask (m, d) of the features that can attain ``max_i |x_i - w_ji|`` for some row of x (n, d).

    Proof: on the interval [l_i, u_i] that feature i of the rows spans, |x_i - w_ji| lies between
    ``max(l_i - w, w - u_i, 0)`` and ``max(u_i - w, w - l_i)``; a feature whose greatest value is below another's least
    loses to it in every row. Subtraction rounds monotonically, so the proof holds for the rounded differences too.
    """
    low, high = x.amin(0), x.amax(0)
    greatest = torch.maximum(high - points, points - low)
    least = torch.maximum(low - points, points - high).clamp_min_(0)
    return ~(greatest < least.amax(1, keepdim=True))  # nothing is left out where a weight is NaN


def worth(alive: Tensor) -> bool:
    """Whether enough features are left out for a separate pass over each point to be faster."""
    points, features = alive.shape
    return bool(2 * alive.sum() + PER_POINT * points < features * points)


def pruned_winners(x: Tensor, points: Tensor, alive: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """The values and codes ``sign * (position + 1)`` of the largest differences among candidates, each (n, m)."""
    n, m = len(x), len(points)
    values, code = x.new_empty(m, n), torch.empty(m, n, dtype=torch.int32, device=x.device)
    features = [row.nonzero()[:, 0] for row in alive]
    rows = max(16, block // max(len(f) for f in features))
    for a in range(0, n, rows):
        columns = x[a : a + rows].T.contiguous()
        for j, some in enumerate(features):
            z = columns.index_select(0, some).sub_(points[j].index_select(0, some)[:, None])
            best = z.abs().max(0)  # one index, at ties too
            values[j, a : a + rows] = best.values
            sign = z.gather(0, best.indices[None])[0].sign_()
            code[j, a : a + rows] = (some.index_select(0, best.indices) + 1) * sign
    return values.T, code.T
