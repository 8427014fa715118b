"""What is proved of a part stays proved of the whole: monotone networks one behind the other, and inside others."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from helpers.monotone import DIRECTIONS, FEATURES, chain, gradients, noisy, steepest_violation
from helpers.runs import private
from torch import Tensor, nn

import dplip
from dplip import nn as dn
from dplip.certificates.slopes import slopes

S = torch.tensor(DIRECTIONS, dtype=torch.float64)


class Rising(dplip.constraints.Constraint):
    """Weights that are not negative."""

    def project(self, weight: Tensor, layer: nn.Module) -> None:
        weight.detach().clamp_(min=0)


def rising(n: int, m: int) -> nn.Module:
    return dplip.constrain(nn.Linear(n, m), "weight", Rising())


def first(outputs: int) -> nn.Module:
    return dn.Monotonic(chain("inf", (FEATURES, 8, outputs)), DIRECTIONS)


def later(n: int, m: int, kind: str = "inf") -> nn.Module:
    return dn.Monotonic(chain(kind, (n, 8, m)), [1] * n)


class Bypass(nn.Module):
    """A residual that is written by hand: rising functions plus a thousandth of a function of slope at most 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.f = chain("inf", (width, 8, width))

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x.tanh() + x + 1e-3 * self.f(x)


COMPOSED: dict[str, Callable[[], nn.Module]] = {
    "before a rising layer": lambda: nn.Sequential(first(4), nn.ReLU(), rising(4, 2)),
    "two": lambda: nn.Sequential(first(3), nn.Tanh(), later(3, 2)),
    "three": lambda: nn.Sequential(first(3), later(3, 4, "one"), dn.Clamp(-1, 1), later(4, 1, "two")),
    "behind ranges, before a sort": lambda: nn.Sequential(
        dn.TabularInput([-1.0] * 6, [1.0] * 6), first(4), dn.GroupSort(2), rising(4, 4), nn.Softplus(), later(4, 1)
    ),
    "nested": lambda: nn.Sequential(dn.Monotonic(first(2), DIRECTIONS, None), nn.Sigmoid(), rising(2, 1)),
}


@pytest.mark.parametrize("name", COMPOSED)
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_a_monotone_part_stays_monotone_inside_a_model(name, scale):
    model = COMPOSED[name]().double()
    noisy(model, scale)
    certificate = dplip.certify_monotonic(model, DIRECTIONS)
    assert certificate.margin >= 0
    generator = torch.Generator().manual_seed(1)
    for size in (1e-2, 1.0, 1e3):
        x = size * torch.randn(256, FEATURES, generator=generator, dtype=torch.float64)
        step = size * torch.rand(256, FEATURES, generator=generator, dtype=torch.float64) * S
        assert bool((model(x + step) >= model(x) - 1e-12 * model(x).abs()).all())
        found = gradients(model, x)
        assert bool((found >= certificate.lower[:, None] - 1e-9).all())
        assert bool((found <= certificate.upper[:, None] + 1e-9).all())


@pytest.mark.parametrize("name", ["before a rising layer", "three"])
def test_no_weights_that_training_can_reach_violate_it(name):
    model = COMPOSED[name]().double()
    outputs = model(torch.zeros(1, FEATURES, dtype=torch.float64)).shape[1]
    assert steepest_violation(model, S[:, None].expand(-1, outputs)) >= -1e-12
    assert dplip.certify_monotonic(model, DIRECTIONS).margin >= 0


@pytest.mark.parametrize("name", COMPOSED)
def test_the_lipschitz_constant_composes(name):
    model = COMPOSED[name]().double()
    noisy(model, 1.0)
    x = torch.randn(200, FEATURES, dtype=torch.float64)
    steepest = gradients(model, x).transpose(0, 1)
    for norm in (1, 2, math.inf):
        whole = dplip.lipschitz(model, (FEATURES,), norm)
        assert math.isfinite(whole)
        assert float(torch.linalg.matrix_norm(steepest, norm).max()) <= whole


@pytest.mark.parametrize(
    "middle",
    [lambda: Bypass(4), lambda: nn.Sequential(nn.Linear(4, 4), Bypass(4), nn.Linear(4, 4)), nn.Tanh],
    ids=["bypass", "between", "tanh"],
)
def test_every_slope_lies_in_its_interval_behind_and_before_any_signs(middle):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), middle(), nn.Tanh(), later(4, 4), nn.Linear(4, 2)).double()
    lower, upper = slopes(model, 5)
    for scale in (0.01, 0.3, 3.0):
        found = gradients(model, scale * torch.randn(300, 5, dtype=torch.float64))
        assert bool((found >= lower[:, None] - 1e-9).all()) and bool((found <= upper[:, None] + 1e-9).all())


def test_intervals_of_two_linear_residuals_are_exact():
    """Each block's slopes are single numbers, so that the product of its intervals is that of its matrices."""
    torch.manual_seed(0)
    a, b = (dn.Monotonic(nn.Linear(4, 4), torch.randn(4, 4).sign(), None).double() for _ in range(2))
    lower, upper = slopes(nn.Sequential(a, b), 4)
    exact = (
        gradients(b, torch.zeros(1, 4, dtype=torch.float64))[:, 0]
        @ gradients(a, torch.zeros(1, 4, dtype=torch.float64))[:, 0]
    )
    torch.testing.assert_close(lower, exact, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(upper, exact, rtol=1e-6, atol=1e-8)


def test_hand_written_residuals_are_proved_too():
    model = nn.Sequential(first(4), Bypass(4), rising(4, 1)).double()
    assert dplip.certify_monotonic(model, DIRECTIONS).margin > 0


def test_what_turns_a_sign_behind_is_refused():
    model = nn.Sequential(first(4), nn.ReLU(), rising(4, 1)).double()
    with torch.no_grad():
        model[2].weight[0, 2] = -0.1
    with pytest.raises(dplip.ConfigurationError, match=r"feature \d: .*asks for the other sign"):
        dplip.certify_monotonic(model, DIRECTIONS)
    falling = nn.Sequential(first(4), dn.Monotonic(chain("inf", (4, 8, 1)), [-1, -1, 1, -1])).double()
    with pytest.raises(dplip.ConfigurationError, match="asks for the other sign"):
        dplip.certify_monotonic(falling, DIRECTIONS)


def test_a_private_run_ends_monotone():
    torch.manual_seed(0)
    model = nn.Sequential(
        dn.TabularInput([-1.0] * 6, [1.0] * 6), first(4), dn.Clamp(-1, 1), later(4, 4), nn.ReLU(), rising(4, 1)
    )
    before = copy.deepcopy(model.state_dict())
    run = private(
        model,
        loss=dplip.losses.BinaryCrossEntropy(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        noise_multiplier=5.0,
        seed=0,
    )
    for seed in range(4):
        x = torch.randn(10, FEATURES, generator=torch.Generator().manual_seed(seed))
        run.step(x, (x[:, 0] > 0).float())
    assert any(not torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert dplip.certify_monotonic(model, DIRECTIONS).margin >= 0
