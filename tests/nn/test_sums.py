"""Sums in blocks: the bound of their roundings covers any order, and a layer that no longer sums so is seen."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from helpers.models import MODELS, built
from helpers.runs import private
from torch import Tensor, nn

import dplip.nn as dn
from dplip.errors import ConfigurationError
from dplip.nn import sums
from dplip.nn.bounded import summed
from dplip.propagation import Walk
from dplip.rules.linear import linear
from dplip.rules.registry import rule

UNIT = 2.0**-24


def float32_sum(terms: np.ndarray, order: str) -> float:
    """A sum of float32 numbers in an order that a machine might choose."""
    terms = terms.astype(np.float32)
    if order == "one by one":
        return float(np.add.accumulate(terms, dtype=np.float32)[-1])
    if order == "backwards":
        return float(np.add.accumulate(terms[::-1], dtype=np.float32)[-1])
    if order == "lanes":
        padded = np.append(terms, np.zeros(-len(terms) % 16, np.float32)).reshape(-1, 16)
        return float(np.add.accumulate(np.add.accumulate(padded, dtype=np.float32)[-1], dtype=np.float32)[-1])
    while len(terms) > 1:  # pairs
        terms = np.append(terms, np.zeros(len(terms) % 2, np.float32))
        terms = terms[::2] + terms[1::2]
    return float(terms[0])


@pytest.mark.parametrize("order", ["one by one", "backwards", "lanes", "pairs"])
@pytest.mark.parametrize(("examples", "terms"), [(500, 1), (4000, 1), (60, 50)])
def test_any_order_of_a_sum_is_covered(order, examples, terms):
    generator = np.random.default_rng(0)
    bound = 1 + sums.apart(examples, terms, blocked=False, dtype=torch.float32)
    for kind in range(6):
        total = generator.random(examples * terms) if kind % 2 else np.ones(examples * terms)
        half = len(total) // 2
        edge = 2.0 ** math.floor(math.log2(half / terms))
        total[half:] = -edge * UNIT * (1 - 2.0 ** -(kind + 2)) * terms  # just under half a unit of the edge
        total /= terms
        total[0] += edge - total[:half].sum() if abs(edge - total[:half].sum()) < 1 else 0
        for more in (1.0, 0.3):
            one = np.full(terms, more / terms)
            for neighbour in (np.concatenate([one, total]), np.concatenate([total, one])):
                assert abs(float32_sum(neighbour, order) - float32_sum(total, order)) <= bound


def test_the_bound_of_roundings_is_not_idle():
    """A chain of equal numbers, off the grid of the largest sums, rounds by a good part of what is allowed."""
    n = 32_000
    x = np.full(n, np.float32(1 + 0.49 * 2.0**-9))
    off = abs(float32_sum(x, "one by one") - float(x.astype(np.float64).sum()))
    assert off > 0.1 * sums.apart(n, 1, blocked=False, dtype=torch.float32) / 2


def test_blocks_round_by_less_than_is_said_and_give_the_sum():
    generator = torch.Generator().manual_seed(0)
    for rows in (1, 127, 128, 129, 1024, 1025, 5000):
        v, x = torch.rand(rows, 3, generator=generator), torch.rand(rows, 5, generator=generator)
        v, x = v / v.norm(dim=1, keepdim=True), x / x.norm(dim=1, keepdim=True)
        allowed = sums.apart(rows, 1, blocked=True, dtype=torch.float32) / 2
        assert float((sums.of_products(v, x).double() - v.double().mT @ x.double()).norm()) <= allowed
        assert float((sums.of_rows(x).double() - x.double().sum(0)).norm()) <= allowed


LAYERS = [
    (nn.Linear(7, 5), (7,)),
    (nn.Linear(7, 5), (9, 7)),
    (nn.Conv1d(3, 4, 3, padding=1, stride=2), (3, 12)),
    (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (4, 11, 10)),
    (nn.Conv2d(3, 6, 3, padding="same", dilation=2), (3, 11, 10)),
    (nn.Conv2d(3, 6, 3, padding=1, padding_mode="circular"), (3, 8, 8)),
    (nn.Conv2d(3, 6, (3, 2), stride=(1, 2), bias=False), (3, 8, 8)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda value: str(value))
@pytest.mark.parametrize("batch", [1, 5, 300])
def test_a_layer_that_sums_in_blocks_has_the_outputs_and_gradients_of_its_own(layer, shape, batch):
    layer = layer.double()
    x = torch.randn(batch, *shape, dtype=torch.float64, requires_grad=True)
    wanted = [x, *layer.parameters()]
    y = layer(x)
    v = torch.randn_like(y)
    own = torch.autograd.grad(y, wanted, v)
    handle = layer.register_forward_hook(summed)
    z = layer(x)
    handle.remove()
    assert torch.equal(y, z)
    for a, b in zip(torch.autograd.grad(z, wanted, v), own, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", MODELS)
def test_every_trained_parameter_has_its_summation(name):
    model, shape = built(name)
    found = Walk(model, shape).summations
    assert set(found) == {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(how.terms >= 1 and how.uses >= 1 for how in found.values())


def test_uses_and_positions_are_counted():
    shared = nn.Linear(6, 6)
    model = nn.Sequential(dn.BallProjection(1.0), shared, nn.ReLU(), shared)
    assert Walk(model, (4, 6)).summations["1.weight"].uses == 2
    assert Walk(model, (4, 6)).summations["1.weight"].terms == 4


@pytest.mark.parametrize(
    "layer, shape",
    [(nn.Linear(3, 2), (3,)), (nn.Conv2d(2, 3, 3), (2, 5, 5)), (dn.BoundedLinear(3, 2).eval(), (3,))],
)
@pytest.mark.parametrize("change", ["weight frozen", "bias frozen", "an attribute"])
def test_a_layer_sums_in_blocks_whatever_is_frozen_or_written_on_it(layer, shape, change):
    layer = copy.deepcopy(layer)
    if change == "an attribute":
        layer.radius = 1.0
    else:
        layer.get_parameter(change.split()[0]).requires_grad_(False)
    layer.register_forward_hook(summed)
    output = layer(torch.randn(4, *shape))
    assert type(output.grad_fn).__name__ in ("LinearGradientsBackward", "ConvolutionGradientsBackward")
    output.sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in layer.parameters())


@pytest.mark.parametrize("radius", [1e-12, 1.0])
def test_no_magnitude_takes_an_example_beyond_its_radius(radius):
    """What is scaled down must keep its digits, on its way through numbers below the normal ones, too."""
    for width, (size, length) in itertools.product((4, 64), itertools.product((1e-30, 1e-10, 1.0, 1e18), repeat=2)):
        layer = dn.BoundedLinear(width, 16, radius=radius)
        layer(torch.randn(1, width) * size).backward(torch.randn(1, 16) * length)
        assert all(float(p.grad.double().norm()) <= radius for p in layer.parameters())


@pytest.mark.parametrize("radius", [1e-25, 0.0, -1.0, math.nan, math.inf])
def test_a_radius_that_is_none_is_refused_whenever_it_is_set(radius):
    layer = dn.BoundedLinear(4, 3)
    with pytest.raises(ConfigurationError, match="radius"):
        dn.BoundedLinear(4, 3, radius=radius)
    layer.radius = radius
    with pytest.raises(ConfigurationError, match="radius"):
        private(layer, input_shape=(4,))


def test_a_class_with_the_rule_of_a_layer_and_not_its_sums_is_charged_for_any_order():
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.zeros(3, 6)), None

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("bi,oi->bo", x, self.weight)

    rule(Mine)(linear)
    model = nn.Sequential(dn.BallProjection(1.0), Mine(), nn.Linear(3, 4))
    found = Walk(model, (6,)).summations
    assert not found["1.weight"].blocked and found["2.weight"].blocked


@pytest.mark.parametrize("layer, shape", [(dn.BoundedLinear(3, 2), (3,)), (dn.BoundedConv2d(2, 3, 3), (2, 5, 5))])
def test_no_rows_have_a_gradient_of_zero(layer, shape):
    layer(torch.zeros(0, *shape)).sum().backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in layer.parameters())


@pytest.mark.parametrize("layer", [dn.BoundedLinear(2, 20_000), dn.BoundedConv2d(1, 2, 1)])
def test_an_example_that_is_left_out_moves_no_other(layer):
    """Norms that are taken anew, of a copy that lies otherwise in memory, round otherwise in every row."""
    shape = (2,) if isinstance(layer, nn.Linear) else (1, 100, 100)
    x = torch.rand(6, *shape, generator=torch.Generator().manual_seed(0)) + 1
    with_it = torch.cat([torch.full((1, *shape), 1e30), x])

    def weight_gradient(x: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(layer(x).flatten(1).sum(1).mul(0.7).sum(), layer.weight)
        return found

    assert torch.equal(weight_gradient(with_it), weight_gradient(x))


def replaced(model: nn.Sequential) -> None:
    old, new = model[1], nn.Linear(6, 4)
    new.weight, new.bias = old.weight, old.bias  # type: ignore[assignment]
    model[1] = new


def unhooked(model: nn.Sequential) -> None:
    model[1]._forward_hooks.clear()


@pytest.mark.parametrize("change", [replaced, unhooked])
def test_a_layer_that_no_longer_sums_in_blocks_is_seen(change):
    model = nn.Sequential(dn.BallProjection(1.0), nn.Linear(6, 4))
    run = private(model)
    change(model)
    run.backward(torch.randn(10, 6), torch.zeros(10, dtype=torch.int64))
    with pytest.raises(ConfigurationError, match="Make the model private again"):
        run.optimizer.step()
