"""Projection onto the ball of the operator norm from l2 to l2."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dplip.constraints.balls import Ball
from dplip.norms import convolution_norms, matrix_norms


class SpectralBall(Ball):
    """Weights with operator norm at most ``radius``; a kernel's is that of its convolution, at every input size.

    A matrix is projected in the Euclidean sense (its singular values are cut at the radius); a kernel is scaled.
    """

    def project(self, weight: Tensor, layer: nn.Module) -> None:
        w = weight.detach()
        if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
            sides = [(0, 0)] * len(layer.kernel_size)
            norm = convolution_norms(weight, None, layer.stride, sides, layer.dilation, layer.groups).two_two
            if norm > self.radius:
                w.mul_(self.radius / norm)
            return
        matrix = w.flatten(1)
        if matrix_norms(matrix if w.ndim != 2 else weight).two_two <= self.radius:
            return
        wide = matrix.double() if matrix.shape[0] <= matrix.shape[1] else matrix.double().mT
        values, vectors = torch.linalg.eigh(wide @ wide.mT)
        cut = self.radius / values.clamp_min(self.radius**2).sqrt()
        wide = (vectors * cut) @ (vectors.mT @ wide)
        matrix = wide if w.flatten(1).shape[0] <= w.flatten(1).shape[1] else wide.mT
        w.copy_(matrix.reshape(w.shape))
