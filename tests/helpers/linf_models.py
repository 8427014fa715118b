"""Small l-infinity networks of every architecture, and the corners of a box."""

import torch
from torch import Tensor, nn

import dplip.nn as dn
from dplip.losses import ClippedHinge


def small(width: int = 16, clamp: bool = False, rho: float = 0.3) -> nn.Sequential:
    torch.manual_seed(1)
    first = [dn.Clamp(0.0, 1.0)] if clamp else []
    return nn.Sequential(
        *first,
        dn.LInfDistance(12, width),
        dn.SortNetLinear(width, width, rho),
        dn.SortNetLinear(width, 5, rho, negate=True),
    )


LOSS = ClippedHinge(threshold=0.5, cross_entropy=0.3, temperature=4.0)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.register_buffer("offset", torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(x - 0.3) * 2 + (-self.inner(x) / 3)
        y = torch.cat((y[:, :4], torch.abs(y[:, 4:]) + 1), 1) + self.offset
        return self.head(torch.tanh(y) - y.mean(1, keepdim=True))


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        dn.Clamp(0.0, 1.0),
        nn.Conv2d(1, 4, 3, padding=1),
        dn.GroupSort(2),
        dn.ScaledL2NormPool2d(2),
        nn.AvgPool2d(2),
        nn.Flatten(),
        dn.Center(),
        dn.BallProjection(1.0),
        nn.Linear(16, 3),
    )


def windows() -> nn.Sequential:
    """Order statistics of windows in front, a network that is bounded in l2 behind."""
    front = [dn.Clamp(0.1, 0.9), nn.MaxPool2d(3, 2, 1), nn.Flatten()]
    return nn.Sequential(*front, dn.OrthogonalLinear(16, 16), dn.GroupSort(2), dn.OrthogonalLinear(16, 3))


class Branches(nn.Module):
    """Values that meet again: neither branch is a cut, their sum is one."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = dn.OrthogonalLinear(8, 8), dn.OrthogonalLinear(8, 8), dn.OrthogonalLinear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.clamp(x, 0.1, 0.9)
        return self.head(torch.abs(self.one(x)) + torch.relu(self.two(x)))


def patches() -> nn.Sequential:
    distances = dn.LInfDistance2d(1, 4, 3, stride=2, padding=1)
    return nn.Sequential(distances, nn.MaxPool2d(2), nn.Flatten(), nn.ELU(), nn.Linear(16, 3))


def centred() -> nn.Sequential:
    mean = dn.PrivateMean((8,), 1.0)
    mean.mean.uniform_()
    return nn.Sequential(mean, dn.LogCompression(20.0), nn.Linear(8, 3))


NETS = {
    "centred": (centred, (8,)),
    "sortnet": (small, (12,)),
    "clamped sortnet": (lambda: small(clamp=True), (12,)),
    "mixed": (lambda: nn.Sequential(dn.Clamp(0, 1), small()[0], nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4)), (12,)),
    "binary": (lambda: nn.Sequential(dn.LInfDistance(12, 6), nn.Linear(6, 1)), (12,)),
    "residual": (Residual, (8,)),
    "convolutional": (convolutional, (1, 8, 8)),
    "patches": (patches, (1, 8, 8)),
    "windows": (windows, (1, 8, 8)),
    "branches": (Branches, (8,)),
}


def built(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    build, shape = NETS[name]
    torch.manual_seed(3)
    return build().eval(), shape


def corners(x: Tensor, r: Tensor, tries: int = 60) -> Tensor:
    """Inputs in the box around each x: corners, faces and points inside; shape (tries, batch, ...)."""
    r = r.reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype)
    moves = torch.rand(tries, *x.shape) * 2 - 1
    moves[: tries // 2] = moves[: tries // 2].sign()
    return x + 0.9999 * r * moves
