"""Random compositions of layers stay within what a walk claims of them."""

import math
from collections.abc import Callable
from math import inf

import torch
import torch.nn.functional as F
from helpers.laws import FAMILIES, attack, claims, induced, jacobians, set_weights, worst
from helpers.norms import quick
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import dplip
from dplip import Norms
from dplip import nn as dn
from dplip.propagation import Walk


class Residual(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class Twice(nn.Module):
    """One module used for two purposes: the gradients of its parameters add."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(x)) - self.block(x)


class Beside(nn.Module):
    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.one, self.other = one, other

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.one(x), self.other(x)), dim=1)


class Tied(nn.Module):
    """Two layers of one weight, the second as a functional call."""

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.layer, self.weight = layer, layer.weight

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.layer(x))
        return F.linear(y, self.weight) if isinstance(self.layer, nn.Linear) else F.conv2d(y, self.weight, padding=1)


class Affine(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.scale, self.shift = (
            nn.Parameter(torch.randn(shape)),
            nn.Parameter(torch.randn(shape[:1] + (1,) * (len(shape) - 1))),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class Halves(nn.Module):
    """The two halves of the channels change places, one of them through a block."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return torch.cat((b, self.block(a)), dim=1)


@st.composite
def blocks(draw: st.DrawFn, shape: tuple[int, ...], depth: int) -> nn.Module:
    """A random module that keeps the shape of its input: (channels,) or (channels, height, width)."""
    channels = shape[0]
    layers: list[Callable[[], nn.Module]] = [
        *(nn.ReLU, nn.Tanh, nn.GELU, dn.Center, nn.Identity),
        *(
            lambda: dn.GroupSort(2),
            lambda: dn.Householder(channels),
            lambda: nn.Dropout(0.3),
            lambda: nn.PReLU(channels),
        ),
        *(lambda: Affine(shape), lambda: dn.BallProjection(1.5), lambda: dn.Clamp(-1.0, 0.5)),
    ]
    if len(shape) == 1:
        layers += [lambda: nn.Linear(channels, channels), lambda: Tied(nn.Linear(channels, channels))]
    else:
        layers += [
            lambda: nn.Conv2d(channels, channels, 3, padding=1),
            lambda: nn.Conv2d(channels, channels, 3, padding=1, padding_mode="circular", groups=2),
            lambda: nn.Conv2d(channels, channels, 2, padding="same"),
            lambda: Tied(nn.Conv2d(channels, channels, 3, padding=1)),
            lambda: nn.MaxPool2d(3, 1, 1),
            lambda: nn.AvgPool2d(3, 1, 1),
        ]
    kinds = ["layer", "layer", "sequence", "residual", "twice", "halves"] if depth else ["layer"]
    kind = draw(st.sampled_from(kinds))
    if kind == "layer":
        return draw(st.sampled_from(layers))()
    if kind == "halves":
        half = (channels // 2, *shape[1:])
        return Halves(draw(blocks(half, depth - 1))) if channels % 4 == 0 else Residual(draw(blocks(shape, depth - 1)))
    inner = draw(blocks(shape, depth - 1))
    if kind == "sequence":
        return nn.Sequential(inner, draw(blocks(shape, depth - 1)))
    return Residual(inner) if kind == "residual" else Twice(inner)


@settings(quick, max_examples=25)
@given(st.data())
def test_random_compositions(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 2**20)))
    shape = data.draw(st.sampled_from([(4,), (2, 4, 4), (4, 2, 2)]))
    layers: list[nn.Module] = [data.draw(blocks(shape, 2))]
    width = shape[0]
    if data.draw(st.booleans()):
        layers.append(Beside(data.draw(blocks(shape, 1)), data.draw(blocks(shape, 1))))
        width *= 2
    layers += [nn.Flatten(), nn.Linear(width * math.prod(shape[1:]), 3)]
    model = nn.Sequential(*layers).double()
    family = data.draw(st.sampled_from(["as initialised", *FAMILIES]))
    if family in FAMILIES:
        set_weights(model, family, data.draw(st.integers(0, 100)))
    walk = Walk(model, shape)
    claimed = claims(walk, 2.0)
    found = attack(walk, model, 2.0, count=2, steps=5)
    assert {key[0] for key in found.value} == {"output", "input", *dict(model.named_parameters())}
    ratio, where = worst(claimed, found.value)
    assert ratio <= 1 + 1e-9, (where, ratio, model)


def test_the_l1_norm_of_a_ball_projection_is_attained() -> None:
    """Just outside the ball, at the angle atan(sqrt(n - 1)) / 2 to an axis, which no search finds by itself."""
    n = 6
    angle = math.atan(math.sqrt(n - 1)) / 2
    x = torch.full((n,), math.cos(angle) / math.sqrt(n - 1), dtype=torch.float64)
    x[0] = math.sin(angle)
    exact = induced(jacobians(dn.BallProjection(1.0), x * (1 + 1e-9))["input"])[1.0, 1.0]
    output, pullback = dplip.propagate(dn.BallProjection(1.0), (n,))
    for name in ("l1", "linf"):
        stated = pullback(Norms(output.shape, **{name: 1.0}))[0].norm({"l1": 1, "linf": inf}[name])
        assert exact <= stated <= exact * (1 + 1e-4)


def test_a_residual_sum_is_tight() -> None:
    """|x + Wx| = 2 |x| and |v + W'v| = 2 |v| for W the identity: a residual bound has nothing to give away."""
    layer = nn.Linear(4, 4, bias=False)
    nn.init.eye_(layer.weight)
    output, pullback = dplip.propagate(Residual(layer), (4,), Norms((4,), l2=1.0))
    cotangent, parameters = pullback(Norms((4,), l2=1.0))
    for bound, exact in ((output.l2, 2.0), (cotangent.l2, 2.0), (parameters["block.weight"].l2, 1.0)):
        assert exact <= bound <= exact * (1 + 1e-5)
