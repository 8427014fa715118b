"""Monotone by construction: no pair of inputs violates it, whatever the weights; what does not compose is refused."""

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from helpers.monotone import CHAINS, DIRECTIONS, FEATURES, chain, gradients, noisy, steepest_violation
from helpers.runs import private
from torch import nn

import dplip
from dplip import nn as dn
from dplip.certificates.slopes import slopes
from dplip.constraints import Constraint, EntryBall, RowL1Ball, constrain


@pytest.mark.parametrize("kind", CHAINS)
def test_weights_random_noisy_and_adversarial_leave_it_monotone(kind):
    model = dn.Monotonic(chain(kind), DIRECTIONS).double()
    s = torch.tensor(DIRECTIONS, dtype=torch.float64)
    x = 3 * torch.randn(64, FEATURES, dtype=torch.float64)
    for scale in (0.0, 1.0, 100.0):
        noisy(model, scale, seed=int(scale))
        certificate = dplip.certify_monotonic(model, DIRECTIONS)
        assert 0 < certificate.margin <= 1
        found = gradients(model, x)[0]
        lower, upper = slopes(model, FEATURES)
        assert bool((found >= lower[0] - 1e-9).all()) and bool((found <= upper[0] + 1e-9).all())
        assert float((found * s)[:, s != 0].min()) >= certificate.margin - 1e-9
    assert steepest_violation(model, s[:, None]) > 0


@pytest.mark.parametrize("kind", CHAINS)
def test_no_pair_of_inputs_violates_it(kind):
    model = dn.Monotonic(chain(kind), DIRECTIONS).double()
    noisy(model, 10.0)
    generator = torch.Generator().manual_seed(1)
    s = torch.tensor(DIRECTIONS, dtype=torch.float64)
    for size in (1e-6, 1e-2, 1.0, 1e4):
        x = size * torch.randn(256, FEATURES, generator=generator, dtype=torch.float64)
        step = size * torch.rand(256, FEATURES, generator=generator, dtype=torch.float64) * s
        assert bool((model(x + step) >= model(x)).all())


def test_the_slope_bound_of_the_inf_chain_is_attained():
    """Every row picks feature 0: the slope of f is 1, and a residual of 0.99 would not be monotone."""
    module = chain("inf", (FEATURES, 8, 8, 1))
    with torch.no_grad():
        for layer in module[::2]:
            layer.weight.zero_()
            layer.weight[:, 0] = 1.0
            layer.bias.zero_()
        module[0].weight[:, 0] = -1.0
    lower, _ = slopes(module, FEATURES)
    assert lower[0, 0] == pytest.approx(-1, rel=1e-5)
    with pytest.raises(dplip.ConfigurationError, match=r"slope is 1 .*lipschitz=0.99"):
        dn.Monotonic(module, DIRECTIONS, lipschitz=0.99)
    model = dn.Monotonic(module, DIRECTIONS)
    assert float(gradients(model, torch.randn(4, FEATURES))[0, :, 0].min()) == pytest.approx(1e-4, rel=0.01)


def test_several_outputs_take_a_matrix_of_directions():
    matrix = torch.tensor([[1, 0], [-1, 1], [0, 0], [0, -1], [1, 1], [0, 0]])
    model = dn.Monotonic(chain("inf", (FEATURES, 8, 2)), matrix).double()
    noisy(model, 10.0)
    certificate = dplip.certify_monotonic(model, matrix)
    assert certificate.lower.shape == (2, FEATURES) and certificate.margin > 0
    assert steepest_violation(model, matrix.double()) > 0
    with pytest.raises(dplip.ConfigurationError, match="margin"):
        dplip.certify_monotonic(model, -matrix)


def test_a_slope_that_is_read_off_follows_the_weights():
    torch.manual_seed(0)
    model = dn.Monotonic(nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 1)), DIRECTIONS, None)
    before = float(model.slope)
    noisy(model, 3.0)
    assert float(model.slope) > 2 * before
    assert dplip.certify_monotonic(model, DIRECTIONS).margin > 0
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    noisy(copied, 30.0)
    assert dplip.certify_monotonic(copied, DIRECTIONS).margin > 0


def test_a_private_run_ends_monotone_and_its_residual_costs_nothing():
    torch.manual_seed(0)
    data = nn.Sequential(dn.TabularInput([-1.0] * 6, [1.0] * 6), dn.Monotonic(chain("inf"), DIRECTIONS))
    loss = dplip.losses.BinaryCrossEntropy()
    run = private(
        data,
        loss=loss,
        optimizer=torch.optim.SGD(data.parameters(), lr=1.0),
        noise_multiplier=5.0,
        seed=0,
    )
    assert set(run.optimizer.sensitivities()) == {n for n, p in data.named_parameters() if p.requires_grad}
    for seed in range(5):
        x = torch.randn(10, FEATURES, generator=torch.Generator().manual_seed(seed))
        run.step(x, (x[:, 0] > 0).float())
    assert dplip.certify_monotonic(data, DIRECTIONS).margin > 0
    # The residual has no parameters, so the bounds are those of the branch alone.
    alone = nn.Sequential(data[0], data.get_submodule("1.module"))
    bounds = dplip.sensitivity(data, loss, (FEATURES,))
    assert list(bounds.values()) == list(dplip.sensitivity(alone, loss, (FEATURES,)).values())


def test_gradients_of_examples_attain_the_bounds_of_the_inf_chain():
    """Rows that all pick feature 0 attain every layer's bound at once, for inputs bounded in l2 and l1 alike."""
    module = chain("inf", (4, 6, 6, 1)).double()
    with torch.no_grad():
        for layer in module[::2]:
            layer.weight.zero_()
            layer.weight[:, 0] = 1.0
            layer.bias.copy_(1e-7 * torch.arange(len(layer.bias)))  # no ties, at which a gradient is shared out
    x = torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64)
    norms = dplip.Norms((4,), l1=1.0)
    _, pullback = dplip.propagate(module, (4,), norms)
    _, bounds = pullback(dplip.Norms((1,), l1=1.0))
    module(x).sum().backward()
    for name, p in module.named_parameters():
        assert float(p.grad.norm() / bounds[name].l2) == pytest.approx(1, rel=2e-5)


@pytest.mark.parametrize(
    "build, words",
    [
        # The default stack of the existing package: one-inf on every layer, which does not compose.
        (lambda: stack(EntryBall, EntryBall, 1.0), r"slope is \d+.*lipschitz=1"),
        # Constants per layer whose product was not handed to the wrapper.
        (lambda: stack(EntryBall, RowL1Ball, 1.3), r"slope is 2\.197.*lipschitz=1"),
        (lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1, bias=False)).requires_grad_(), None),
    ],
)
def test_what_does_not_compose_is_refused_before_training(build, words):
    module = build()
    if words is None:
        with torch.no_grad():
            module[0].weight.mul_(50)
        words = "lipschitz=1"
    with pytest.raises(dplip.ConfigurationError, match=words):
        dn.Monotonic(module, [1, 1, 1, 0])


def stack(first: Callable[[float], Constraint], others: Callable[[float], Constraint], c: float) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        constrain(nn.Linear(4, 32), "weight", first(c)),
        dn.GroupSort(2),
        constrain(nn.Linear(32, 32), "weight", others(c)),
        dn.GroupSort(2),
        constrain(nn.Linear(32, 1), "weight", others(c)),
    )


def test_what_does_not_compose_is_refused_by_the_certificate_too():
    model = chain("inf")
    with pytest.raises(dplip.ConfigurationError, match=r"feature \d: .*Add the residual"):
        dplip.certify_monotonic(model, DIRECTIONS)
    wrapped = dn.Monotonic(model, DIRECTIONS)
    with torch.no_grad():  # as loading foreign weights would
        model[2].weight.mul_(100)
    with pytest.raises(dplip.ConfigurationError, match="margin"):
        dplip.certify_monotonic(wrapped, DIRECTIONS)


def test_a_step_that_goes_too_far_is_refused():
    model = dn.Monotonic(nn.Linear(3, 1), [1, 1, 1], lipschitz=1.0)
    with torch.no_grad():
        model.module.weight.fill_(2.0)
    with pytest.raises(dplip.ConfigurationError, match=r"slope is 2 .*lipschitz=1"):
        dplip.project(model)


@pytest.mark.parametrize("directions", [[1, 2, 0], [0.5, 1, 0], [[1], [1]], [[1, 1], [0, 0], [1, 1]], []])
def test_directions_that_do_not_fit_are_refused(directions):
    with pytest.raises(dplip.DPLipError):
        dn.Monotonic(nn.Linear(3, 1), directions, None)


@pytest.mark.parametrize("lipschitz", [0.0, -1.0, math.inf, math.nan])
def test_a_slope_that_is_no_number_is_refused(lipschitz):
    with pytest.raises(dplip.ConfigurationError, match="lipschitz"):
        dn.Monotonic(nn.Linear(3, 1), [1, 0, 0], lipschitz)
