"""Opponent colours: a rotation of red, green and blue into light and two colour differences."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dplip.errors import ConfigurationError
from dplip.norms import Norms, OperatorNorms
from dplip.rules import Pullback, rule, through

AXES = (
    (3**-0.5, 3**-0.5, 3**-0.5),
    (2**-0.5, -(2**-0.5), 0.0),
    (6**-0.5, 6**-0.5, -2 * 6**-0.5),
)
"""Orthonormal axes: light, red against green, yellow against blue."""

ROTATION_SLACK = 1e-6
"""Relative slack for the float32 rounding of the axes."""


class OpponentColors(nn.Module):
    """A rotation of the three colours of every pixel into light, red against green, and yellow against blue.

    Shape: (..., 3, height, width), unchanged.

    Guarantee: orthogonal, so 1-Lipschitz in l2 (up to rounding). It has no parameters.
    Source: van de Sande, Gevers, Snoek, "Evaluating color descriptors for object and scene recognition", 2010.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim < 3 or x.shape[-3] != 3:
            raise ConfigurationError(f"shape={tuple(x.shape)}: OpponentColors is for (..., 3, height, width).")
        axes = torch.tensor(AXES, dtype=x.dtype, device=x.device)
        return torch.einsum("kc,...chw->...khw", axes, x)


@rule(OpponentColors)
def opponent_colors(module: OpponentColors, x: Norms) -> tuple[Norms, Pullback]:
    axes = torch.tensor(AXES, dtype=torch.float64).abs() * (1 + ROTATION_SLACK)
    norms = OperatorNorms(
        one_one=float(axes.sum(0).max()),
        one_two=1 + ROTATION_SLACK,
        one_inf=float(axes.max()),
        two_two=1 + ROTATION_SLACK,
        two_inf=1 + ROTATION_SLACK,
        inf_inf=float(axes.sum(1).max()),
    )
    return through(norms, x, x.shape)
