"""Sums over neighbouring batches lie within the sensitivity, whatever float32 does to them."""

import math

import pytest
import torch
from helpers.runs import Handed, private
from torch import Tensor, nn

import dplip.nn as dn
from dplip.losses import Hinge, Loss


def gradient(model: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss(model(x), y).backward()
    return {n: p.grad.double() for n, p in model.named_parameters()}


def apart(model: nn.Module, loss: Loss, x: Tensor, y: Tensor, more: Tensor, label: Tensor) -> dict[str, float]:
    """How far the sums with and without one more example, which comes first, lie apart."""
    with_it = gradient(model, loss, torch.cat([more, x]), torch.cat([label, y]))
    without = gradient(model, loss, x, y)
    return {n: float((with_it[n] - without[n]).norm()) for n in with_it}


SCORES = {
    "bounded": lambda: dn.BoundedLinear(64, 1, bias=False),
    "stock": lambda: nn.Linear(64, 1, bias=False),
    "stock in evaluation mode": lambda: nn.Linear(64, 1, bias=False).eval(),
    "bounded in evaluation mode": lambda: dn.BoundedLinear(64, 1, bias=False).eval(),
    "a weight of its own": lambda: Weighted(),
}


class Weighted(nn.Module):
    """A linear map without a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(64, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


@pytest.mark.parametrize("batch", [512, 4096, 8192, 65_536])
@pytest.mark.parametrize("kind", SCORES)
def test_neighbouring_sums_lie_within_the_sensitivity(kind, batch):
    """The first half adds up to just below a power of two; one more example lifts it over, and from there on every
    small term of the other half, just under half a unit in the last place, rounds away."""
    layer = SCORES[kind]()
    nn.init.zeros_(layer.weight)
    model = nn.Sequential(dn.BallProjection(1.0), layer)
    run = private(model, loss=Hinge(), input_shape=(64,), batches=Handed(expected_batch_size=float(batch)))
    k, one = batch.bit_length() - 2, torch.eye(64)[:1]
    x, y = torch.zeros(batch, 64), torch.zeros(batch, 1)
    x[: 2**k, 0] = 1.0
    x[2**k :, 0], y[2**k :] = 2.0 ** (k - 24) * (1 - 2**-5), 1.0
    declared, worst = run.optimizer.sensitivities().total, 0.0
    for start in torch.linspace(0, 1, 11):
        x[0, 0] = start
        worst = max(worst, *apart(model, run.loss, x, y, one, y[:1]).values())
    assert worst <= declared
    if kind in ("bounded", "stock") and batch <= 8192:
        assert declared < 1.12  # and the price stays small


@pytest.mark.parametrize("batch", [512, 2048])
@pytest.mark.parametrize("kind", [nn.Conv2d, dn.BoundedConv2d, nn.Conv1d])
def test_neighbouring_sums_of_a_convolution_lie_within_the_sensitivity(kind, batch):
    """The same, with hundreds of small terms from each example of the other half."""
    size, pool = ((28, 28), nn.AdaptiveAvgPool2d(1)) if kind is not nn.Conv1d else ((784,), nn.AdaptiveAvgPool1d(1))
    layer = kind(1, 8, 3, bias=False)
    model = nn.Sequential(dn.BallProjection(1.0), layer, pool, nn.Flatten(), nn.Linear(8, 1, bias=False))
    positions = math.prod(n - 2 for n in size)
    with torch.no_grad():
        layer.weight.zero_()
        model[4].weight.zero_()
        model[4].weight[0, 0] = math.sqrt(positions) / 3
    run = private(model, loss=Hinge(), input_shape=(1, *size), batches=Handed(expected_batch_size=float(batch)))
    ones = torch.ones(1, 1, *size) / 28 * (1 - 1e-5)

    def scaled(r: Tensor) -> Tensor:
        return ones * r.reshape(-1, *[1] * (len(size) + 1))

    alone = gradient(model, run.loss, scaled(torch.ones(1)), torch.zeros(1, 1))["1.weight"]
    share = float(alone[0].abs().max())
    k = math.floor(math.log2(batch // 2 * share))
    count = int(2.0**k / share)
    declared = run.optimizer.sensitivities()
    for start in torch.linspace(0, 1, 5):
        large = torch.ones(count)
        large[0] = start
        small = torch.full((batch - count - 1,), min(1.0, 2.0 ** (k - 24) * (1 - 2**-5) * positions / share))
        y = torch.cat([torch.zeros(count, 1), torch.ones(len(small), 1)])
        x = scaled(torch.cat([large, small]))
        moved = apart(model, run.loss, x, y, scaled(torch.ones(1)), y[:1])
        assert all(moved[name] <= declared[name] for name in declared)
    assert declared["1.weight"] <= 1.2 * max(1.0, float(alone.norm()))


@pytest.mark.parametrize("layer", [nn.Linear(6, 3), dn.BoundedLinear(6, 3)])
def test_neighbouring_sums_over_tokens_and_of_biases_lie_within_the_sensitivity(layer):
    batch, tokens = 1024, 16
    model = nn.Sequential(dn.BallProjection(1.0), layer, nn.Flatten(), nn.Linear(48, 1, bias=False))
    run = private(model, loss=Hinge(), input_shape=(tokens, 6), batches=Handed(expected_batch_size=float(batch)))
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(batch, tokens, 6)
    x[:, :, 0] = 0.25
    x[batch // 2 :] *= 2.0**-15 * torch.rand(batch // 2, 1, 1, generator=generator)
    y = (torch.arange(batch) >= batch // 2).float()[:, None]
    for scale in (1e-3, 1.0, 1e3):
        with torch.no_grad():
            model[3].weight.fill_(scale)
        declared = run.optimizer.sensitivities()
        moved = apart(model, run.loss, x, y, x[:1], y[:1])
        assert all(moved[name] <= declared[name] for name in declared)


@pytest.mark.parametrize("small", [1e-20, 1e-21, 3e-22])
def test_products_below_the_normal_numbers_are_covered(small):
    x, y = torch.randn(64, 300, generator=torch.Generator().manual_seed(0)), torch.arange(64.0)[:, None] % 2
    model = nn.Sequential(dn.BallProjection(small), nn.Linear(300, 50), dn.GradientBall(small), nn.Linear(50, 1))
    run = private(model, loss=Hinge(), input_shape=(300,), batches=Handed(expected_batch_size=64.0))
    declared = run.optimizer.sensitivities()
    for count in (1, 64):
        moved = apart(model, run.loss, x[:count], y[:count], 3 * x[:1], y[:1])
        assert all(moved[name] <= declared[name] for name in declared)
