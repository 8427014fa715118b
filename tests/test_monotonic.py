"""Monotone by construction: no pair of inputs violates it, whatever the weights; what cannot be proved is refused."""

import copy
import dataclasses
import importlib.util
import itertools
import math
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from laws import Calls
from small_runs import private
from torch import Tensor, nn

import dplip
from dplip import nn as dn
from dplip.certificates import feature_radii
from dplip.certificates.slopes import slopes
from dplip.constraints import ColumnL1Ball, Constraint, EntryBall, RowL1Ball, RowL2Ball, SpectralBall, constrain
from dplip.nn.tabular_input import capped_simplex

CHAINS: dict[str, tuple[Callable[[float], Constraint], Callable[[float], Constraint]]] = {
    "inf": (EntryBall, RowL1Ball),
    "one": (ColumnL1Ball, ColumnL1Ball),
    "two": (SpectralBall, SpectralBall),
    "two-inf": (RowL2Ball, RowL1Ball),
}
DIRECTIONS = [1, -1, 0, 1, 0, -1]
FEATURES = len(DIRECTIONS)


def chain(kind: str, widths: tuple[int, ...] = (FEATURES, 8, 8, 1), constants: float = 1.0, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for i, (n, m) in enumerate(itertools.pairwise(widths)):
        ball = CHAINS[kind][min(i, 1)](constants)
        layers += [constrain(nn.Linear(n, m), "weight", ball), dn.GroupSort(2 if m % 2 == 0 else 1)]
    return nn.Sequential(*layers[:-1])


@torch.no_grad()
def noisy(model: nn.Module, scale: float, seed: int = 0) -> None:
    """The weights after a step of huge noise: at the edge of their sets, mostly."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.requires_grad:
            p.add_(scale * torch.randn(p.shape, generator=generator).to(p))
    dplip.project(model)


def gradients(model: nn.Module, x: Tensor) -> Tensor:
    """(outputs, batch, features)."""
    x = x.clone().requires_grad_()
    y = model(x)
    return torch.stack([torch.autograd.grad(y[:, j].sum(), x, retain_graph=True)[0] for j in range(y.shape[1])])


def steepest_violation(model: nn.Module, directions: Tensor, steps: int = 60, seed: int = 0) -> float:
    """The least slope, in the direction asked for, that gradient descent on the weights and the inputs finds."""
    generator = torch.Generator().manual_seed(seed)
    features = directions.shape[0]
    x = torch.randn(16, features, generator=generator, dtype=torch.float64).requires_grad_()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam([*trained, x], lr=0.1)
    least = math.inf
    active = directions.T[:, None] != 0
    for _ in range(steps):
        y = model(x)
        found = torch.stack([torch.autograd.grad(y[:, j].sum(), x, create_graph=True)[0] for j in range(y.shape[1])])
        ahead = torch.where(active, found * directions.T[:, None], math.inf)
        least = min(least, float(ahead.detach().min()))
        optimizer.zero_grad()
        torch.where(active, found * directions.T[:, None], 0.0).sum().backward()
        optimizer.step()
        dplip.project(model)
    return least


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
    alone = nn.Sequential(data[0], data[1].module)
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


def test_blocks_are_projected_and_one_hot_rows_pass():
    generator = torch.Generator().manual_seed(0)
    eye = torch.eye(5)
    assert torch.equal(capped_simplex(eye), eye)
    rows = torch.rand(500, 5, generator=generator, dtype=torch.float64)
    found = capped_simplex(rows)
    assert float(found.min()) >= 0 and float(found.sum(1).max()) <= 1 + 1e-9
    others = torch.rand(500, 5, generator=generator, dtype=torch.float64)
    others = others / others.sum(1, keepdim=True)
    # A projection onto a convex set: no other point of it lies nearer.
    assert bool(((rows - found).norm(dim=1) <= (rows - others).norm(dim=1) + 1e-9).all())


def test_a_table_with_wild_values_stays_within_its_bound():
    module = dn.TabularInput([0.0, -5.0], [1.0, 5.0], (3, 2), log=[1])
    output, _ = dplip.propagate(module, (7,))
    wild = torch.tensor([[math.inf] * 7, [-math.inf] * 7, [1e30] * 7, [-3.0] * 7, [0.4] * 7])
    y = module(wild)
    assert bool(y.isfinite().all())
    for p in (1, 2, math.inf):
        assert float(torch.linalg.vector_norm(y, p, dim=1).max()) <= output.norm(p)
    corner = module(torch.tensor([[1.0, -5.0, 0, 1, 0, 1, 0]]))
    assert [float(torch.linalg.vector_norm(corner, p)) for p in (1, 2)] == pytest.approx([output.l1, output.l2], 1e-5)


def test_the_responses_of_the_example_rise_within_their_band(tmp_path, monkeypatch, capsys):
    path = Path(__file__).resolve().parent.parent / "examples" / "monotone_response.py"
    spec = importlib.util.spec_from_file_location("monotone_response", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    recipe = dataclasses.replace(example.tabular_preset("shop", True), epochs=1, batch_size=100)
    table = example.Table("shop", example.shop(300, 0), example.shop(50, 1), example.SHOP)
    model = example.train(table, recipe, 3.0, seed=0)
    at = torch.linspace(0, 200, 50)
    scores, low, high = example.responses(model, table.test.tensors[0], 0, at)
    assert float(scores.diff(dim=1).min()) > -1e-6
    assert bool((scores.mean(0) >= low - 1e-5).all()) and bool((scores.mean(0) <= high + 1e-5).all())
    monkeypatch.setattr(sys, "argv", ["response", "--quick", "--out", str(tmp_path / "r.png")])
    example.main()
    assert (tmp_path / "r.png").exists() and "certified margin" in capsys.readouterr().out


def test_rows_of_weights_are_projected_onto_the_l2_ball():
    layer = constrain(nn.Linear(5, 3), "weight", RowL2Ball(0.5))
    with torch.no_grad():
        layer.weight.normal_(0, 10)
        layer.weight[0] *= 1e-4
        kept = layer.weight[0].clone()
    dplip.project(layer)
    assert torch.equal(layer.weight[0], kept)
    assert float(layer.weight[1].detach().norm()) == pytest.approx(0.5, rel=1e-6)
    assert float(layer.weight.detach().norm(dim=1).max()) <= 0.5


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
