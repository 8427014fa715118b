"""Whitening by public samples: a fixed matrix at each place of a map decorrelates the channels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dplip.errors import ConfigurationError
from dplip.norms import Norms, OperatorNorms, matrix_norms, of_fixed
from dplip.rules import Pullback, rule, through


class Whitening(nn.Module):
    """At each place of a map, the channels times ``(C + floor)^-power``, C their covariance over public samples there.

    In correlated features, such as neighbouring orientations, a few directions hold most of the norm, and a private
    layer's noise is proportional to the norm. Whitening spreads the norm over more directions that tell classes apart,
    and gradient descent needs fewer steps.

    Args:
        samples: public features, (count, channels, height, width), of synthetic images
            (:func:`dplip.data.dead_leaves.dead_leaves`) or of a public data set. C is in units of their mean variance.
        power: 0 is the identity; 1/2 whitens in full.
        floor: added to every variance, > 0; a direction of smaller variance stays small.

    Shape: (batch, channels, height, width), unchanged. The matrices are not in the ``state_dict``: each construction
    of the layer computes them from the samples.

    Raises:
        ConfigurationError: samples of another shape, fewer than two, all alike or not finite; power < 0; floor <= 0.

    Guarantee: linear, with norms certified from the matrices; the l2 norm is at most floor ** -power, up to rounding.
    It costs no privacy as long as the samples are public, since it does not depend on the training data.
    Source: Kessy, Lewin, Strimmer, "Optimal whitening and decorrelation", 2018 (ZCA).
    """

    matrices: Tensor

    def __init__(self, samples: Tensor, power: float = 0.5, floor: float = 0.1) -> None:
        super().__init__()
        if samples.ndim != 4 or len(samples) < 2:
            raise ConfigurationError(
                f"samples: their shape is {tuple(samples.shape)}. Give (count, channels, height, width), 2 or more."
            )
        if not (math.isfinite(power) and power >= 0):
            raise ConfigurationError(f"power={power}: give a finite number >= 0; 0.5 whitens in full.")
        if not (math.isfinite(floor) and floor > 0):
            raise ConfigurationError(f"floor={floor}: give a finite number > 0.")
        self.power, self.floor, self.shape = power, floor, tuple(samples.shape[1:])
        places = samples.double().flatten(2).permute(2, 0, 1)
        places = places - places.mean(1, keepdim=True)
        covariance = places.mT @ places / len(samples)
        variance = float(covariance.diagonal(dim1=1, dim2=2).mean())
        if not (math.isfinite(variance) and variance > 0):
            raise ConfigurationError("samples: they are all alike, or not all finite. Give samples that vary.")
        values, vectors = torch.linalg.eigh(covariance / variance)
        scales = (values.clamp(min=0.0) + floor) ** -power
        self.register_buffer("matrices", ((vectors * scales[:, None]) @ vectors.mT).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1:] != self.shape:
            raise ConfigurationError(f"shape={tuple(x.shape)}: this Whitening is for (batch, {self.shape}).")
        return torch.einsum("pkc,bcp->bkp", self.matrices.to(x.dtype), x.flatten(2)).unflatten(2, self.shape[1:])

    def extra_repr(self) -> str:
        return f"{self.shape}, power={self.power:g}, floor={self.floor:g}"


@rule(Whitening)
def whitening(module: Whitening, x: Norms) -> tuple[Norms, Pullback]:
    norms = of_fixed(module.matrices, lambda stack: OperatorNorms.block_diagonal(map(matrix_norms, stack)))
    return through(norms, x, x.shape)
