"""Ordinary idioms are walked as they are written, and bounded."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.laws import attack, claims, set_weights, worst
from helpers.sample import Calls
from torch import Tensor, nn

import dplip
from dplip import Norms
from dplip import nn as dn
from dplip.propagation import Walk


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(x)))


class Net(nn.Module):
    """As people write it: layers, functional calls, a residual sum, a view by the batch's size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.blocks = nn.ModuleList([Block(12), Block(12)])
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.relu(self.conv(x)), 2)
        x = x.view(x.size(0), -1)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Buffered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("mean", torch.linspace(-1, 1, 4))
        self.register_buffer("std", torch.linspace(0.5, 2, 4))
        self.register_buffer("mask", torch.tensor([True, False, True, True]))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear((x - self.mean) / self.std) * self.mask + self.std * 2


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
        self.scale = nn.Parameter(torch.randn(6), requires_grad=False)
        self.body.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x) * (2 * self.scale))


class Autoencoder(nn.Module):
    """The weight of one layer is used by two more, as a functional call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.second(torch.tanh(self.first(x))), self.first.weight, bias=self.bias)


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared, self.head = nn.Linear(3, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.chunk(x, 2, dim=1)
        return self.head(torch.cat([self.shared(a), self.shared(b)], dim=-1))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.weight = nn.Parameter(torch.randn(3, 2, 2, 2)), nn.Parameter(torch.randn(2, 3))
        self.gain, self.shift = nn.Parameter(torch.randn(3, 1, 1)), nn.Parameter(torch.randn(()))

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.kernel, stride=2) * self.gain - self.shift
        return F.linear(F.avg_pool2d(y, 2).flatten(1), self.weight)


class Sized(nn.Module):
    """Shapes read and written every usual way."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = x.permute(0, 2, 3, 1).reshape(b, h * w, c)
        y = y.transpose(1, 2).contiguous().view(b, -1)
        y = y.view(y.size(0), c, -1).mean(-1) / c
        return y.unsqueeze(1).expand(-1, 2, -1).squeeze(2).reshape(x.shape[0], -1)


class Split(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a, b, c = x.split(2, dim=1)
        first, second = x[:, :3], x[:, 3:]
        return torch.cat((a - b, c, F.relu(first) + second, torch.stack((a, b), dim=1).flatten(1)), 1)


def sequential() -> nn.Module:
    inner = nn.Sequential(nn.Identity(), nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), dn.GroupSort(2)), nn.AvgPool2d(2))
    return nn.Sequential(inner, nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, 2))


def twice() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.Sequential(layer))


MAP = (2, 4, 4)
IDIOMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "a net": (Net, MAP),
    "residual": (lambda: Block(4), (4,)),
    "nested sequential": (sequential, MAP),
    "buffers": (Buffered, (4,)),
    "frozen": (Frozen, (4,)),
    "tied": (Autoencoder, (4,)),
    "shared on halves": (Siamese, (6,)),
    "shared in a chain": (twice, (4,)),
    "functional": (Functional, MAP),
    "shapes": (Sized, (2, 4, 4)),
    "split": (Split, (6,)),
    "constraints": (lambda: nn.Sequential(dn.OrthogonalLinear(4, 6), dn.MaxMin(), dn.SpectralLinear(6, 2)), (4,)),
    "global mean": (lambda: Calls(lambda x: x.mean(dim=(2, 3))), MAP),
    "flatten": (lambda: Calls(lambda x: x.flatten(1) * 0.5 + 1), MAP),
    "unsqueeze": (lambda: Calls(lambda x: F.relu(x.unsqueeze(1)).squeeze(1)), (4,)),
    "shape of another": (lambda: Calls(lambda x: F.relu(x).reshape(x.size())), (4,)),
    "softmax": (lambda: Calls(lambda x: F.softmax(x, dim=1)), (4,)),
    "abs": (lambda: Calls(lambda x: abs(x) - abs(-x)), (4,)),
    "integer mask": (lambda: Calls(lambda x: x * torch.tensor([1, 0, 2, 1])), (4,)),
    "single layer": (lambda: nn.Linear(4, 2), (4,)),
    "identity": (nn.Identity, (4,)),
}


@pytest.mark.parametrize("name", IDIOMS)
def test_an_ordinary_idiom_is_bounded(name: str) -> None:
    build, shape = IDIOMS[name]
    torch.manual_seed(0)
    model = build().double().eval()
    walk = Walk(model, shape)
    for family in ("random", "equal"):
        set_weights(model, family)
        claimed, found = claims(walk, 2.0), attack(walk, model, 2.0, count=1, steps=4)
        expected = {n for n, p in model.named_parameters() if p.requires_grad}
        assert expected == {key[0] for key in claimed} - {"output", "input"}
        ratio, where = worst(claimed, found.value)
        assert ratio <= 1 + 1e-9, where


def test_a_tied_weight_is_one_parameter_whose_uses_add() -> None:
    layer = nn.Linear(3, 3, bias=False)
    nn.init.eye_(layer.weight)
    bounds = dplip.parameter_bounds(nn.Sequential(layer, layer), (3,), Norms((3,), l2=1.0))
    assert list(bounds) == ["0.weight"]
    assert 2.0 <= bounds["0.weight"] <= 2.0001
