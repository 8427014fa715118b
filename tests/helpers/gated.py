"""A model whose layers bound its gradients by themselves, and its constants."""

import torch
from torch import nn

import dplip
from dplip import nn as dn
from dplip.losses import CrossEntropy
from dplip.propagation import Walk
from dplip.sensitivities.propagated import constant_sensitivity

X = 3 * torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 4


def gated() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        *(dn.BallProjection(3.0), nn.Linear(6, 8), dn.GradientBall(0.5), nn.ReLU(), dn.BallProjection(2.0)),
        *(nn.Linear(8, 5), dn.GradientBall(0.25), nn.ReLU(), dn.BallProjection(1.5), nn.Linear(5, 4, bias=False)),
    )


def bounds(model: nn.Module, loss: dplip.losses.Loss | None = None) -> dict[str, float] | None:
    found = constant_sensitivity(Walk(model, (6,)), CrossEntropy() if loss is None else loss)
    return None if found is None else dict(found)
