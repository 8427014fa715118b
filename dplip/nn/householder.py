"""The Householder activation: a learnable reflection of pairs of channels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dplip.errors import ConfigurationError
from dplip.norms import Norms, OperatorNorms, least, times
from dplip.rules import SUMMATIONS, Pullback, Summation, rule


class Householder(nn.Module):
    """Reflect each pair (x_i, x_{i + n/2}) of channels that lies on the negative side of a learnable line.

    Args:
        channels: size of axis 1, even. Each pair has an angle theta, initially pi / 2, where the layer is MaxMin.

    Guarantee: 1-Lipschitz in l2 and norm preserving: on both sides the Jacobian is orthogonal, and the two agree on
    the line. The angle's gradient at one pair is at most the product of the pair's norm and its cotangent's.
    Source: Singla, Singla and Feizi, "Improved deterministic l2 robustness", 2021 (arXiv 2108.04062).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels < 2 or channels % 2:
            raise ConfigurationError(f"channels={channels}: channels are reflected in pairs. Give an even number.")
        self.theta = nn.Parameter(torch.full((channels // 2,), math.pi / 2))

    def forward(self, x: Tensor) -> Tensor:
        theta = self.theta.reshape(-1, *[1] * (x.ndim - 2))
        a, b = x.chunk(2, dim=1)
        negative = a * torch.sin(theta / 2) - b * torch.cos(theta / 2) < 0
        cos, sin = torch.cos(theta), torch.sin(theta)
        reflected_a, reflected_b = a * cos + b * sin, a * sin - b * cos
        return torch.cat((torch.where(negative, reflected_a, a), torch.where(negative, reflected_b, b)), dim=1)


@rule(Householder)
def householder(module: Householder, x: Norms) -> tuple[Norms, Pullback]:
    jacobian = OperatorNorms(one_one=math.sqrt(2), two_two=1.0, inf_inf=math.sqrt(2))
    output = jacobian(x, x.shape)

    def pullback(v: Norms) -> Any:
        # dtheta_k = sum over positions of <v_k, R'(theta_k) x_k> with R' orthogonal: by Cauchy-Schwarz over all
        # positions and pairs the l1 norm, hence the l2 norm, is at most |v|_2 |x|_2; and |R' x|_inf <= sqrt2 |x|_inf.
        bound = least(times(v.l2, x.l2), times(times(v.l1, math.sqrt(2)), x.linf))
        gradient = Norms(tuple(module.theta.shape), bound)
        return (jacobian.T(v, x.shape),), {"theta": gradient}

    return output, pullback


# An angle's gradient sums four products at each position, whose magnitudes add up to at most twice the bound.
SUMMATIONS[householder] = lambda parameter, output: Summation(8 * math.prod(output) // parameter[0])
