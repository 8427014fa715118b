"""Logarithmic compression, which brings features of very different magnitudes to one scale."""

from __future__ import annotations

import math

from torch import Tensor, nn

from dplip.norms import REDUCTION_SLACK, Bound, Norms, OperatorNorms, below, times
from dplip.rules import Pullback, rule, through
from dplip.validate import positive


class LogCompression(nn.Module):
    """``sign(x) log(1 + scale |x|)``, entry by entry: linear near 0, logarithmic far above ``1 / scale``.

    Args:
        scale: the slope at 0.

    Guarantee: Lipschitz with constant ``scale`` in every lp norm, odd and monotone.
    Source: Oyallon, Mallat, "Deep roto-translation scattering for object classification", 2015.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = positive(scale)

    def forward(self, x: Tensor) -> Tensor:
        return x.sign() * (self.scale * x.abs()).log1p()

    def extra_repr(self) -> str:
        return f"scale={self.scale:g}"


@rule(LogCompression)
def log_compression(module: LogCompression, x: Norms) -> tuple[Norms, Pullback]:
    # Its derivative scale / (1 + scale |x|) lies in (0, scale].
    output, pullback = through(OperatorNorms.diagonal(module.scale * (1 + REDUCTION_SLACK)), x, x.shape)
    return output & Norms(x.shape, linf=_compressed(x.linf, module.scale)), pullback


def _compressed(size: Bound, scale: float) -> Bound:
    """``log(1 + scale size)``, the bound on the largest entry's image, since the map grows with the magnitude."""
    product = below(times(scale, size), 1e30)
    return (product.log1p() if isinstance(product, Tensor) else math.log1p(product)) * (1 + REDUCTION_SLACK)
