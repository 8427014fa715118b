"""Intervals of slopes hold every slope, and radii of single features hold under attack."""

import copy
import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.monotone import DIRECTIONS, FEATURES, chain, gradients, noisy
from helpers.sample import Calls
from torch import Tensor, nn

import dplip
from dplip import nn as dn
from dplip.certificates import feature_radii
from dplip.certificates.slopes import slopes


def mean_of_one() -> nn.Module:
    layer = dn.PrivateMean((5,), 1.0)
    layer.mean.fill_(1.0)
    return layer


MODELS: dict[str, Callable[[], nn.Module]] = {
    "residual by hand": lambda: Residual(),
    "tanh": lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2), nn.Sigmoid()),
    "sorted": lambda: nn.Sequential(nn.Linear(5, 6), dn.FullSort(), nn.Linear(6, 6), dn.MaxMin(), nn.Linear(6, 2)),
    "clamped": lambda: nn.Sequential(dn.Clamp(-1, 1), nn.Linear(5, 4), nn.ReLU(), dn.Shift(0.5), nn.Linear(4, 2)),
    "centred": lambda: nn.Sequential(mean_of_one(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)),
    "leaky": lambda: nn.Sequential(nn.Linear(5, 4), nn.LeakyReLU(0.3), nn.Linear(4, 4), nn.ELU(0.5), nn.Linear(4, 2)),
    "distances": lambda: nn.Sequential(nn.Linear(5, 4), dn.LInfDistance(4, 3), nn.Linear(3, 2)),
    "table": lambda: nn.Sequential(dn.TabularInput([-1, -1], [1, 2], (3,), (1,)), nn.Linear(5, 2)),
    "ball": lambda: nn.Sequential(dn.BallProjection(1.0), nn.Linear(5, 2)),
    "parts": lambda: Parts(),
    "normalized": lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).eval(),
}


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = nn.Linear(5, 2), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x[:, :2].relu() + 3.0 * self.g(x).view(-1, 2) - torch.tanh(self.f(x)) / 2


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.f(x).split(2, dim=1)
        return a - torch.maximum(a, b) + x[:, 1:3]


@pytest.mark.parametrize("name", MODELS)
def test_every_slope_lies_in_its_interval(name):
    torch.manual_seed(3)
    model = MODELS[name]().double()
    lower, upper = slopes(model, 5)
    for scale in (0.1, 1.0, 10.0):
        found = gradients(model.eval(), scale * torch.randn(200, 5, dtype=torch.float64))
        assert bool((found >= lower[:, None] - 1e-9).all()) and bool((found <= upper[:, None] + 1e-9).all())


ELEMENTWISE_SLOPES = [
    *(nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.5, 2.0), nn.Tanh(), nn.Sigmoid(), nn.Hardsigmoid(), nn.Softsign()),
    *(
        nn.LogSigmoid(),
        nn.Tanhshrink(),
        nn.Softshrink(),
        nn.LeakyReLU(2.0),
        nn.LeakyReLU(-0.5),
        nn.ELU(3.0),
        nn.ELU(-1.0),
    ),
    *(
        nn.CELU(0.5),
        nn.Softplus(2.0),
        nn.Softplus(-2.0),
        nn.GELU(),
        nn.SiLU(),
        nn.Softmax(1),
        nn.LayerNorm(6, elementwise_affine=False),
    ),
]
FUNCTIONS: list[Callable[[Tensor], Tensor]] = [
    *(torch.relu, torch.tanh, torch.sigmoid, F.softsign, F.logsigmoid, F.hardsigmoid, F.relu6, F.gelu, torch.abs),
    *(lambda x: x.clamp(-0.3, 0.5), lambda x: torch.clamp(x, min=0.1), lambda x: -x / 3 + 2, lambda x: 1 - x * 2),
    *(lambda x: x - x.mean(1, keepdim=True), lambda x: x + x[:, :1], lambda x: torch.cat([x[:, 3:], -x[:, :3]], 1)),
    *(lambda x: x.sub(x.relu(), alpha=2), lambda x: torch.add(x.tanh(), other=x, alpha=-0.5), lambda x: 3 * x + x),
    *(lambda x: x.roll(2, 1), lambda x: torch.roll(x.view(-1, 2, 3), (1, -2), (1, 2)).flatten(1), lambda x: x.flip(1)),
    *(lambda x: x.view(-1, 2, 3).flatten(1), lambda x: x.unsqueeze(1).squeeze(1), lambda x: torch.maximum(x, -x)),
]


@pytest.mark.parametrize(
    "layer", [*ELEMENTWISE_SLOPES, *FUNCTIONS], ids=lambda f: getattr(f, "__name__", type(f).__name__)
)
def test_slopes_through_every_operation_lie_in_their_intervals(layer):
    """Linear maps before and behind, so that cotangents have every sign and no entry is one-hot."""
    torch.manual_seed(0)
    middle = layer if isinstance(layer, nn.Module) else Calls(layer)
    model = nn.Sequential(nn.Linear(4, 6), middle, nn.Linear(6, 2)).double().eval()
    lower, upper = slopes(model, 4)
    for scale in (0.3, 1.0, 10.0):
        found = gradients(model, scale * torch.randn(300, 4, dtype=torch.float64))
        assert bool((found >= lower[:, None] - 1e-7).all()) and bool((found <= upper[:, None] + 1e-7).all())


def test_linear_models_have_exact_slopes():
    torch.manual_seed(0)
    a, b = nn.Linear(4, 6), nn.Linear(6, 2)
    lower, upper = slopes(nn.Sequential(a, b), 4)
    exact = (b.weight.double() @ a.weight.double()).detach()
    torch.testing.assert_close(lower, exact, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(upper, exact, rtol=1e-6, atol=1e-8)


def test_radii_of_single_features_hold_and_are_infinite_along_a_direction():
    torch.manual_seed(0)
    model = dn.Monotonic(chain("inf"), DIRECTIONS).double()
    noisy(model, 3.0)
    x = torch.randn(40, FEATURES, dtype=torch.float64)
    radii, score = feature_radii(model, x), model(x)[:, 0]
    for i, side in itertools.product(range(FEATURES), (0, 1)):
        sign = 1 - 2 * side
        helps = (score > 0) if DIRECTIONS[i] * sign > 0 else (score < 0) if DIRECTIONS[i] * sign < 0 else score.isnan()
        assert bool(radii[helps, i, side].isinf().all())
        reach = radii[:, i, side].clamp_max(1e3)
        for part in (0.5, 0.999):
            moved = x.clone()
            moved[:, i] += sign * part * reach
            assert bool((model(moved)[:, 0].sign() == score.sign()).all())
    assert bool((radii > 0).all())


def test_a_tie_has_no_radius():
    model = nn.Linear(3, 1, bias=False)
    assert bool((feature_radii(model, torch.zeros(2, 3)) == 0).all())


def test_certified_radii_in_all_norms_hold_under_attack():
    torch.manual_seed(0)
    model = dn.Monotonic(chain("inf"), DIRECTIONS).double()
    noisy(model, 3.0)
    x = torch.randn(64, FEATURES, dtype=torch.float64)
    score = model(x)[:, 0]
    lam, k = 1 + 1e-4, sum(d != 0 for d in DIRECTIONS)
    bounds = {1: 2 * lam, 2: math.sqrt(4 * k + FEATURES - k), math.inf: 2 * k + FEATURES - k}
    for norm, bound in bounds.items():
        radii = dplip.certify(model, x, norm=norm)
        assert bool((radii >= 0.999 * score.abs() / (bound * lam)).all())
        moved = x.clone()
        for _ in range(20):
            g = gradients(model, moved)[0] * -score.sign()[:, None]
            if norm == 1:
                step = torch.nn.functional.one_hot(g.abs().argmax(1), FEATURES) * g.sign()
            else:
                step = g.sign() if norm == math.inf else g / g.norm(dim=1, keepdim=True)
            moved = moved + step * radii[:, None] * 0.999 / 20
        assert bool((model(moved)[:, 0].sign() == score.sign()).all())


@pytest.mark.parametrize("log", [(), (0, 1)])
def test_a_column_far_from_zero_is_certified(log: tuple[int, ...]) -> None:
    """Years or serial numbers: the difference to the low end is exact but for a unit of itself."""
    low, high = [1e6, -3e6], [1e6 + 8, -3e6 + 64]
    front = dn.TabularInput(low, high, log=log)
    x = torch.stack([a + torch.rand(4096) * (b - a) for a, b in zip(low, high, strict=True)], 1)
    assert (front(x).double() - copy.deepcopy(front).double()(x.double())).abs().max() <= 8 * 2.0**-24
    model = nn.Sequential(front, nn.Linear(2, 2))
    with torch.no_grad():
        z = model(x)
    radii = dplip.certify(model, x)
    assert (radii > 0)[(z[:, 0] - z[:, 1]).abs() > 1e-4].all()
