"""Sums over a batch: neighbouring ones lie within the sensitivity, whatever the rounding of float32 does to them."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import poisson
from small_models import MODELS, built
from small_runs import Handed, private
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import dplip.nn as dn
from dplip import DPLipOptimizer, PoissonLoader
from dplip.errors import ConfigurationError
from dplip.losses import CrossEntropy, Hinge, Loss
from dplip.nn import sums
from dplip.nn.bounded import summed
from dplip.propagation import Walk
from dplip.rules.linear import linear
from dplip.rules.registry import rule

UNIT = 2.0**-24


def gradient(model: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss(model(x), y).backward()
    return {n: p.grad.double() for n, p in model.named_parameters()}


def apart(model: nn.Module, loss: Loss, x: Tensor, y: Tensor, more: Tensor, label: Tensor) -> dict[str, float]:
    """How far the sums with and without one more example, which comes first, lie apart."""
    with_it = gradient(model, loss, torch.cat([more, x]), torch.cat([label, y]))
    without = gradient(model, loss, x, y)
    return {n: float((with_it[n] - without[n]).norm()) for n in with_it}


# -------------------------------------------------------------------------------------- attacks on the sum of a batch

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


# ---------------------------------------------------------------------------------------------- the bound of roundings


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


# ------------------------------------------------------------------------------------------------- parts of a batch


def parts_of(loader: PoissonLoader) -> list[list[int]]:
    return [x.flatten().long().tolist() for x, _ in loader]


def numbered(count: int) -> TensorDataset:
    return TensorDataset(torch.arange(float(count))[:, None], torch.zeros(count))


def test_one_more_example_changes_its_own_part_alone():
    """Of the same draws: those of the example that comes last are used by no other."""
    few, many = (
        PoissonLoader(
            numbered(n), sample_rate=1.0, public_size=400, max_physical_batch_size=64, seed=7, steps_per_epoch=1
        )
        for n in (400, 401)
    )
    one, other = parts_of(few), parts_of(many)
    differ = [p for p in other if p not in one]
    assert len(one) > 5 and len(differ) <= 2 and any(400 in p for p in differ)


def test_parts_fit_into_memory_and_make_up_the_batch():
    for most, size in itertools.product((1, 3, 64, 500), (1, 40, 700)):
        loader = PoissonLoader(numbered(size), sample_rate=1.0, max_physical_batch_size=most, steps_per_epoch=3)
        seen: list[int] = []
        for x, _ in loader:
            assert 1 <= len(x) <= most
            seen += x.flatten().long().tolist()
            if loader.complete:
                assert sorted(seen) == list(range(size))
                seen = []


def test_parts_are_of_even_size_and_who_is_with_whom_changes():
    loader = PoissonLoader(numbered(6000), sample_rate=1.0, max_physical_batch_size=1024, steps_per_epoch=1)
    first, second = parts_of(loader), parts_of(loader)
    assert first != second
    assert loader.expected_part_size <= 1024
    assert all(abs(len(p) - loader.expected_part_size) < 6 * math.sqrt(1024) for p in first)


def test_parts_are_added_in_float64():
    """A part that is small beside the others is not rounded away."""
    model = dn.BoundedLinear(1, 1, bias=False, radius=2.0)
    nn.init.zeros_(model.weight)
    batches = Handed(expected_batch_size=64.0)
    run = private(model, loss=Hinge(), input_shape=(1,), batches=batches, noise_multiplier=0.0)
    sizes = [1.0, *[2.0**-25] * 8]
    for number, size in enumerate(sizes, start=1):
        batches.give(1, part=number, complete=number == len(sizes))
        run.loss(run.model(torch.tensor([[size]])), torch.zeros(1, 1)).backward()
        run.optimizer.step()
    share = float(model.weight.grad) * 64 / (1 - 1e-6)  # the loss ends so far inside its bound
    assert share == pytest.approx(1 + 2.0**-22, abs=2.0**-23)


def test_a_small_physical_batch_keeps_the_noise_of_a_large_batch_small():
    data = TensorDataset(torch.rand(60_000, 6), torch.zeros(60_000, dtype=torch.int64))
    totals = []
    for most in (None, 512):
        model = nn.Sequential(dn.BallProjection(1.0), nn.Linear(6, 4))
        loader = PoissonLoader(data, sample_rate=1.0, max_physical_batch_size=most)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)

        def made(
            model: nn.Module = model, loader: PoissonLoader = loader, sgd: torch.optim.SGD = sgd
        ) -> DPLipOptimizer:
            return DPLipOptimizer(
                sgd, model=model, loss=CrossEntropy(), input_shape=(6,), noise_multiplier=1.0, batches=loader
            )

        if most is None:
            with pytest.warns(UserWarning, match="max_physical_batch_size"):
                totals.append(made().sensitivities().total)
        else:
            totals.append(made().sensitivities().total)
    alone = math.sqrt(2) * math.sqrt(2)  # of the weight and of the bias
    assert totals[1] < 1.02 * alone < 1.5 * alone < totals[0]


def test_more_losses_than_are_covered_are_refused():
    run = private(built("plain")[0])
    x, y = torch.randn(40, 6), torch.zeros(40, dtype=torch.int64)
    run.batches.give(40)
    for part in x.split(4):
        run.loss(run.model(part), y[:4]).backward()
    with pytest.raises(ConfigurationError, match="losses went into"):
        run.optimizer.step()
    assert not run.charged


@pytest.mark.parametrize("how", ["joined", "a new size"])
def test_more_examples_at_once_than_a_part_has_are_refused(how):
    """Roundings are covered for parts: not for parts that are joined, or handed out otherwise later."""
    model = nn.Sequential(dn.BallProjection(1.0), nn.Linear(1, 1))
    loader = PoissonLoader(numbered(512), sample_rate=1.0, max_physical_batch_size=16, steps_per_epoch=1)
    loss, sgd = Hinge(), torch.optim.SGD(model.parameters(), lr=0.1)
    charged: list[object] = []
    private = DPLipOptimizer(
        sgd, model=model, loss=loss, input_shape=(1,), noise_multiplier=1.0, batches=loader, charge=charged.append
    )
    if how == "a new size":
        with pytest.raises(ConfigurationError, match="max_physical_batch_size"):
            loader.max_physical_batch_size = None
        vars(loader)["max_physical_batch_size"] = None  # past the guard
    x = torch.cat([rows for rows, _ in loader])
    loss(model(x), torch.zeros(len(x), 1)).backward()
    with pytest.raises(ConfigurationError, match="more examples were summed at once"):
        private.step()
    assert not charged


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
    assert type(output.grad_fn).__name__ in ("_LinearBackward", "_ConvolutionBackward")
    output.sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in layer.parameters())


@pytest.mark.parametrize("radius", [1e-12, 1.0])
def test_no_magnitude_takes_an_example_beyond_its_radius(radius):
    """What is scaled down must keep its digits, on its way through numbers below the normal ones, too."""
    for width, (size, length) in itertools.product((4, 64), itertools.product((1e-30, 1e-10, 1.0, 1e18), repeat=2)):
        layer = dn.BoundedLinear(width, 16, radius=radius)
        layer(torch.randn(1, width) * size).backward(torch.randn(1, 16) * length)
        assert all(float(p.grad.double().norm()) <= radius for p in layer.parameters())


@pytest.mark.parametrize("small", [1e-20, 1e-21, 3e-22])
def test_products_below_the_normal_numbers_are_covered(small):
    x, y = torch.randn(64, 300, generator=torch.Generator().manual_seed(0)), torch.arange(64.0)[:, None] % 2
    model = nn.Sequential(dn.BallProjection(small), nn.Linear(300, 50), dn.GradientBall(small), nn.Linear(50, 1))
    run = private(model, loss=Hinge(), input_shape=(300,), batches=Handed(expected_batch_size=64.0))
    declared = run.optimizer.sensitivities()
    for count in (1, 64):
        moved = apart(model, run.loss, x[:count], y[:count], 3 * x[:1], y[:1])
        assert all(moved[name] <= declared[name] for name in declared)


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


@pytest.mark.parametrize("expected", [0.5, 10.0, 512.0, 6000.0])
def test_a_batch_is_hardly_ever_larger_than_the_most_that_is_reckoned_with(expected):
    most = sums.most_examples(expected)
    assert poisson.sf(most, expected) < 2.0**-80
    assert most < 2 * expected + 100


def replaced(model: nn.Sequential) -> None:
    old, new = model[1], nn.Linear(6, 4)
    new.weight, new.bias = old.weight, old.bias
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
