"""Small models of every architecture that the tests of sensitivity, certificates and training share."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dplip.nn as dn

RADIUS = 2.0


class Residual(nn.Module):
    """Two residual blocks, one of them functional."""

    def __init__(self) -> None:
        super().__init__()
        self.ball = dn.BallProjection(RADIUS)
        self.first = nn.Linear(6, 6)
        self.second = dn.OrthogonalLinear(6, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ball(x)
        x = x + F.relu(self.first(x))
        x = x + 0.5 * torch.tanh(self.second(x))
        return self.head(x)


class Tied(nn.Module):
    """One weight at work three times: twice as a shared module, once more as a bare matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.ball = dn.BallProjection(RADIUS)
        self.shared = nn.Linear(6, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.shared(self.ball(x)))
        x = torch.tanh(self.shared(x))
        return self.head(F.linear(x, self.shared.weight))


class Flattening(nn.Module):
    """Reshapes by the size of the batch, as many published models do; torch refuses that for no rows."""

    def __init__(self, features: int = 8, classes: int = 3) -> None:
        super().__init__()
        self.ball = dn.BallProjection(1.0)
        self.linear = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.ball(x).view(x.size(0), -1))


class Pooled(nn.Module):
    """A convolution that takes images of every size; its gradient bounds depend on the size."""

    def __init__(self) -> None:
        super().__init__()
        self.ball = dn.BallProjection(1.0)
        self.convolution = nn.Conv2d(1, 4, 3, padding=1)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu(self.convolution(self.ball(x))).sum((2, 3)))


def orthogonal(features: int = 6, width: int = 8, classes: int = 4, radius: float = RADIUS) -> nn.Sequential:
    """A 1-Lipschitz network, whose gradients keep their norm."""
    return nn.Sequential(
        dn.BallProjection(radius),
        dn.OrthogonalLinear(features, width),
        dn.GroupSort(2),
        dn.OrthogonalLinear(width, classes),
    )


def plain(features: int = 6, width: int = 8, classes: int = 4, radius: float = RADIUS) -> nn.Sequential:
    """Unconstrained weights and biases."""
    return nn.Sequential(dn.BallProjection(radius), nn.Linear(features, width), nn.ReLU(), nn.Linear(width, classes))


def convolutional() -> nn.Sequential:
    """Padding, stride, biases on feature maps, pooling."""
    return nn.Sequential(
        dn.BallProjection(RADIUS),
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        dn.GroupSort(2),
        dn.ScaledL2NormPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 4),
    )


def dropping() -> nn.Sequential:
    """Dropout, to be walked in training mode."""
    return nn.Sequential(dn.BallProjection(RADIUS), nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 4))


def clamped() -> nn.Sequential:
    """Inputs bounded coordinate by coordinate."""
    return nn.Sequential(dn.Clamp(-1.0, 1.0), nn.Linear(6, 8), nn.LeakyReLU(0.1), nn.Linear(8, 4))


def tokens() -> nn.Sequential:
    """One linear layer on every token of a sequence: its weight and bias collect a sum over tokens."""
    return nn.Sequential(
        dn.BallProjection(RADIUS), nn.Linear(3, 5), nn.ReLU(), dn.Center(), nn.Flatten(), nn.Linear(20, 4)
    )


def patches() -> nn.Sequential:
    """Patches of an image, moved past each other and turned by orthogonal maps."""
    return nn.Sequential(
        dn.BallProjection(RADIUS),
        dn.OrthogonalConv2d(2, 5, 2),
        dn.RollChannels(),
        dn.OrthogonalConv2d(5, 6, bias=True),
        dn.GroupSort(2),
        dn.ScaledL2NormPool2d(2),
        nn.Flatten(),
        dn.OrthogonalLinear(24, 4),
    )


def attending() -> nn.Sequential:
    """A sequence whose tokens move towards each other by their distances, in heads between orthogonal maps."""
    return nn.Sequential(
        dn.BallProjection(RADIUS),
        dn.OrthogonalLinear(3, 6),
        dn.DistanceAttention(heads=2, scale=0.5),
        dn.OrthogonalLinear(6, 6, bias=True),
        dn.GroupSort(2, dim=2),
        dn.RollChannels(along=(1,), dim=2),
        dn.DistanceAttention(),
        nn.Flatten(),
        nn.Linear(24, 4),
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "orthogonal": (orthogonal, (6,)),
    "plain": (plain, (6,)),
    "convolutional": (convolutional, (2, 8, 8)),
    "residual": (Residual, (6,)),
    "tied": (Tied, (6,)),
    "dropping": (dropping, (6,)),
    "clamped": (clamped, (6,)),
    "tokens": (tokens, (4, 3)),
    "patches": (patches, (2, 8, 8)),
    "attending": (attending, (4, 3)),
}
"""name: (builder, shape of one example); all give 4 scores."""


def built(name: str, seed: int = 0, gain: float = 1.0) -> tuple[nn.Module, tuple[int, ...]]:
    """The model of that name with seeded weights, those without a constraint multiplied by ``gain``."""
    builder, shape = MODELS[name]
    torch.manual_seed(seed)
    model = builder()
    with torch.no_grad():
        for module in model.modules():
            if type(module) in (nn.Linear, nn.Conv2d):
                module.weight.mul_(gain)
    return model.train(), shape


class Standardized(nn.Module):
    """Raw pixels to standardised ones by public constants, as part of the model."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std
