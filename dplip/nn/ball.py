"""The projection of one example onto an l2 ball, which bounds the input inside the model."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from dplip.nn.gradient_ball import project_rows
from dplip.norms import Norms, OperatorNorms, least
from dplip.rules import Pullback, rule
from dplip.validate import positive


class BallProjection(nn.Module):
    """Project each example onto the l2 ball of the given radius; NaN and infinite entries become 0.

    Args:
        radius: the largest l2 norm of one example's output, in the units of the input.

    Shape: any shape with the batch first; the norm is over all other axes.

    Guarantee: for every input the output is finite with ``|y|_2 <= radius``, and for finite inputs the map is
    1-Lipschitz in l2 (projection onto a convex set).
    """

    def __init__(self, radius: float) -> None:
        super().__init__()
        self.radius = positive(radius)

    def forward(self, x: Tensor) -> Tensor:
        return project_rows(x, self.radius)

    def extra_repr(self) -> str:
        return f"radius={self.radius:g}"


@rule(BallProjection)
def ball_projection(module: BallProjection, x: Norms) -> tuple[Norms, Pullback]:
    output = Norms(x.shape, x.l1, least(x.l2, module.radius), x.linf)
    # The Jacobian is I inside the ball and (R / |x|)(I - uu^T) outside. Its l2 norm is at most 1, and column j has l1
    # norm at most 1 - u_j^2 + |u_j| (|u|_1 - |u_j|) <= (1 + sqrt n) / 2.
    spread = (1 + math.sqrt(x.size)) / 2 if x.size > 1 else 1.0
    jacobian = OperatorNorms(one_one=spread, two_two=1.0, inf_inf=spread)

    def pullback(v: Norms) -> Any:
        return (jacobian.T(v, x.shape),), {}

    return output, pullback
