"""Pooling that keeps the l2 norm."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dplip.errors import ConfigurationError
from dplip.norms import Norms, OperatorNorms
from dplip.rules import Pullback, refuse_module, rule, through


class ScaledL2NormPool2d(nn.Module):
    """The l2 norm of each non-overlapping window of a feature map.

    Args:
        kernel_size: side of the square window, which is also the stride; must divide height and width.

    Guarantee: 1-Lipschitz in l2 (each window's norm is), and it keeps the l2 norm; the gradient at a zero window is 0.
    """

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        if not isinstance(kernel_size, int) or kernel_size < 1:
            raise ConfigurationError(f"kernel_size={kernel_size!r}: give the side of a square window, 1 or more.")
        self.kernel_size = kernel_size

    def forward(self, x: Tensor) -> Tensor:
        return _WindowNorm.apply(x, self.kernel_size)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}"


class _WindowNorm(torch.autograd.Function):
    """The root of each window's sum of squares, with gradient 0 at a zero window, where autograd gives NaN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int) -> Tensor:
        # Each window is divided by its largest entry, so that squares neither overflow nor underflow.
        peak = F.max_pool2d(x.abs(), k)
        safe = torch.where(peak > 0, peak, torch.ones_like(peak))
        unit = x / safe.repeat_interleave(k, -1).repeat_interleave(k, -2)
        length = (F.avg_pool2d(unit.square(), k) * k * k).sqrt()
        ctx.save_for_backward(unit, length)  # unit / length is the gradient, where x over its norm may be denormal
        ctx.k = k
        return torch.where(peak > 0, safe * length, torch.zeros_like(length))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        unit, length = ctx.saved_tensors
        safe = torch.where(length > 0, length, torch.ones_like(length))
        wide = [t.repeat_interleave(ctx.k, -1).repeat_interleave(ctx.k, -2) for t in (safe, grad)]
        return unit / wide[0] * wide[1], None


@rule(ScaledL2NormPool2d)
def scaled_l2_norm_pool(module: ScaledL2NormPool2d, x: Norms) -> tuple[Norms, Pullback]:
    k = module.kernel_size
    if len(x.shape) != 3:
        refuse_module(module, f"is given one example of shape {x.shape}.", "Give it (channels, height, width).")
    channels, height, width = x.shape
    if height % k or width % k:
        refuse_module(module, f"does not divide a map of {height} x {width}.", "Choose a size that does.")
    # A row of the Jacobian is a unit vector on its window, and windows are disjoint.
    jacobian = OperatorNorms(one_one=1.0, one_two=1.0, one_inf=1.0, two_two=1.0, two_inf=1.0, inf_inf=float(k))
    return through(jacobian, x, (channels, height // k, width // k))
