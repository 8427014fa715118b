"""Both kinds of spline, and a scrambled one."""

import torch

import dplip.nn as dn
from dplip.nn.splines.spline import Spline

KINDS = [dn.LinearSpline, dn.CoefficientSpline]


def scrambled(spline: Spline, size: float = 3.0, seed: int = 0) -> Spline:
    """The spline with every parameter moved far from where a projection would leave it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in spline.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return spline
