"""SortNet's layer: order statistics of the distances to learnable points, with geometric weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dplip.errors import ConfigurationError
from dplip.nn.linf.distance import finite, max_distance, ranked_distance
from dplip.nn.linf.linf_distance import Relaxed, bound_distance, by_points, exponent, peaks
from dplip.nn.linf.power_mean import mean_distance
from dplip.norms import Norms
from dplip.rules import SUMMATIONS, Pullback, refuse_module, rule

OMEGA_SLACK = 1e-6
"""Relative slack for the float32 rounding of the weights omega."""


class SortNetLinear(Relaxed):
    """``y_j = sum_k omega_k z_(k) + b_j``, z_(k) the k-th largest of |x_i - w_ji| and omega_k ~ rho^(k-1).

    In training the layer is ``max_i s_i |x_i - w_ji|`` with s_i = 1 with probability 1 - rho, drawn separately for each
    example; its mean is the sum without truncation. In evaluation it sums the largest ``min(in_features, top)``, with
    weights of l1 norm exactly one.

    Args:
        in_features, out_features: sizes; weight of shape (out_features, in_features), drawn from N(0, 1).
        rho: in [0, 1), the ratio of neighbouring weights; 0 is :class:`LInfDistance`.
        bias, negate, p: as for :class:`LInfDistance`; p relaxes the training form.
        top: number of order statistics in evaluation.

    Shape: (batch, ..., in_features) to (batch, ..., out_features).

    Guarantee: as for :class:`LInfDistance` in both modes; in evaluation the weight's gradient has l2 norm at most
    ``|omega|_2 |v|_2``. A mask depends on neither data nor place in the batch, so adding or removing one example
    changes the sum over the batch by one bounded term.
    Source: Zhang, Jiang, He and Wang, 2022 (arXiv 2210.01787), theorem 4.2 for the estimator.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rho: float = 0.3,
        bias: bool = True,
        negate: bool = False,
        p: float = math.inf,
        top: int = 10,
    ) -> None:
        super().__init__()
        if in_features < 1 or out_features < 1 or top < 1:
            raise ConfigurationError(
                f"in_features={in_features}, out_features={out_features}, top={top}: give sizes >= 1."
            )
        if not 0 <= rho < 1:
            raise ConfigurationError(f"rho={rho}: the ratio of neighbouring order statistics lies in [0, 1).")
        self.in_features, self.out_features, self.rho = in_features, out_features, float(rho)
        self.negate, self.p, self.top = negate, exponent(p), min(top, in_features)
        self.weight = nn.Parameter(torch.randn(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def omega(self) -> list[float]:
        """The weights of the order statistics in evaluation, largest first; they sum to one."""
        if self.rho == 0:
            return [1.0]
        whole = 1 - self.rho**self.top
        return [(1 - self.rho) * self.rho**k / whole for k in range(self.top)]

    def forward(self, x: Tensor) -> Tensor:
        rows = finite(x).reshape(-1, x.shape[-1])
        if self.training:
            keep = None
            if self.rho > 0:
                keep = (torch.rand(rows.shape, dtype=rows.dtype, device=rows.device) >= self.rho).to(rows.dtype)
            inf = math.isinf(self.p)
            y = max_distance(rows, self.weight, keep) if inf else mean_distance(rows, self.weight, self.p, keep)
        else:
            y = ranked_distance(rows, self.weight, torch.tensor(self.omega(), dtype=rows.dtype, device=rows.device))
        y = y.reshape(*x.shape[:-1], self.out_features)
        y = -y if self.negate else y
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, rho={self.rho:g}, bias={self.bias is not None}"


@rule(SortNetLinear)
def sortnet_linear(module: SortNetLinear, x: Norms) -> tuple[Norms, Pullback]:
    if x.shape[-1] != module.in_features:
        refuse_module(module, f"is given one example of shape {x.shape}.", "Give it in_features entries a row.")
    # In evaluation a row of the Jacobian is omega, permuted and with signs. In training, for each mask, it is one-hot,
    # or that of the power mean with zeros for the dropped differences, for which the bounds of `peaks` hold too.
    omega = module.omega()
    ranked = (math.sqrt(sum(w * w for w in omega)) * (1 + OMEGA_SLACK), omega[0] * (1 + OMEGA_SLACK))
    bounds = peaks(module.p, module.in_features) if module.training else ranked
    return bound_distance(x, module.weight, module.bias, (*x.shape[:-1], module.out_features), bounds)


SUMMATIONS[sortnet_linear] = by_points
