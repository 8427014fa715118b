"""Bounds that hold whatever the weights are: layers that bound activations and cotangents by themselves."""

import math

import pytest
import torch
from small_runs import private
from torch import Tensor, nn

import dplip
from dplip import Norms
from dplip import nn as dn
from dplip.errors import ConfigurationError, UnboundedOperationError
from dplip.losses import CrossEntropy
from dplip.propagation import Walk
from dplip.rules import registry
from dplip.sensitivities.propagated import constant_sensitivity

X = 3 * torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 4


def gated() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        *(dn.BallProjection(3.0), nn.Linear(6, 8), dn.GradientBall(0.5), nn.ReLU(), dn.BallProjection(2.0)),
        *(nn.Linear(8, 5), dn.GradientBall(0.25), nn.ReLU(), dn.BallProjection(1.5), nn.Linear(5, 4, bias=False)),
    )


def bounds(model: nn.Module, loss: dplip.losses.Loss | None = None) -> dict[str, float] | None:
    found = constant_sensitivity(Walk(model, (6,)), CrossEntropy() if loss is None else loss)
    return None if found is None else dict(found)


# ------------------------------------------------------------------------------------------------- GradientBall


@pytest.mark.parametrize("size", [1.0, 1e-20, 1e20, 3e38])
def test_no_cotangent_leaves_a_gradient_ball(size: float) -> None:
    layer = dn.GradientBall(0.5)
    x = torch.zeros(40, 3, 7, requires_grad=True)
    v = size * torch.randn(40, 3, 7, generator=torch.Generator().manual_seed(0))
    layer(x).backward(v)
    assert x.grad is not None
    norms = torch.linalg.vector_norm(x.grad.double().flatten(1), dim=1)
    assert float(norms.max()) <= 0.5
    if size == 1.0:
        assert float(norms.min()) > 0.49  # projected onto the sphere, and not shrunk further
        cosine = torch.nn.functional.cosine_similarity(x.grad.flatten(1), v.flatten(1))
        torch.testing.assert_close(cosine, torch.ones(40))


@pytest.mark.parametrize("entries", [10, 3000])
@pytest.mark.parametrize("radius", [1e-26, 1e-24, 1e-10, 1e-3, 1.0])
def test_factors_below_the_normal_numbers_do_not_round_out_of_the_ball(entries: int, radius: float) -> None:
    for size in (1e17, 2e17, 3e17, 4e17, 1e18, 1e30, 1e37, 3e38):
        x = torch.full((3, entries), size)
        assert float(dn.BallProjection(radius)(x).double().norm(dim=1).max()) <= radius


def test_a_gradient_ball_neutralises_what_is_not_finite_in_that_example_alone() -> None:
    x = torch.zeros(3, 4, requires_grad=True)
    v = torch.tensor([[0.1] * 4, [math.nan, 1.0, math.inf, 0.0], [0.2] * 4])
    dn.GradientBall(0.5)(x).backward(v)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([[0.1] * 4, [0.0, 0.5, 0.0, 0.0], [0.2] * 4]), rtol=1e-4, atol=0)


def test_in_evaluation_mode_it_is_the_identity_both_ways() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    layer = dn.GradientBall(1e-3).eval()
    layer(x).backward(torch.ones(3, 4))
    assert torch.equal(layer(x), x) and x.grad is not None and torch.equal(x.grad, torch.ones(3, 4))


@pytest.mark.parametrize("radius", [0.0, -1.0, math.inf, math.nan])
def test_a_radius_that_bounds_nothing_is_refused(radius: float) -> None:
    with pytest.raises(ConfigurationError, match="radius"):
        dn.GradientBall(radius)


def test_derivatives_are_not_read_off_a_surrogate() -> None:
    model = nn.Sequential(nn.Linear(6, 6, bias=False), dn.GradientBall(1e-3))
    with torch.no_grad():
        model[0].weight.copy_(5 * torch.eye(6))
    with pytest.raises(UnboundedOperationError, match=r"1: GradientBall .* model\.eval"):
        dplip.lipschitz(model.train(), (6,))
    assert 5.0 <= dplip.lipschitz(model.eval(), (6,)) <= 5.0001


def test_the_certificate_of_a_gated_model_survives_an_attack_along_the_gradient() -> None:
    model = gated().train()
    radii = dplip.certify(model, X)
    assert model.training and bool((radii > 0).any())
    model.eval()
    before = model(X).argmax(1)
    x = X.clone()
    for _ in range(50):
        x.requires_grad_(True)
        z = model(x)
        top = z.gather(1, before[:, None])[:, 0] - z.scatter(1, before[:, None], -math.inf).max(1).values
        (g,) = torch.autograd.grad(top.sum(), x)
        x = (x - 0.1 * g / g.norm(dim=1, keepdim=True).clamp_min(1e-12)).detach()
        shift = x - X
        x = X + shift * (0.999 * radii / shift.norm(dim=1).clamp_min(1e-12)).clamp_max(1.0)[:, None].float()
        assert torch.equal(model(x).argmax(1)[radii > 0], before[radii > 0])


# --------------------------------------------------------------------------------------------- constant bounds


def test_the_constants_follow_from_the_radii() -> None:
    found = bounds(gated())
    assert found is not None
    expected = {"1.weight": 1.5, "1.bias": 0.5, "5.weight": 0.5, "5.bias": 0.25, "9.weight": 1.5 * math.sqrt(2)}
    for name, value in expected.items():
        assert value <= found[name] <= value * (1 + 1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 30.0, 1e10, 1e30])
def test_no_example_exceeds_the_constants_whatever_the_weights(scale: float) -> None:
    model, loss = gated(), CrossEntropy()
    found = bounds(model)
    assert found is not None
    generator = torch.Generator().manual_seed(2)
    attained = dict.fromkeys(found, 0.0)
    for _ in range(4):
        for p in model.parameters():
            p.data = scale * torch.randn(p.shape, generator=generator)
        for x, y in zip(X, Y, strict=True):
            for size in (1.0, 1e30):
                model.zero_grad()
                loss(model(size * x[None]), y[None]).backward()
                for name, p in model.named_parameters():
                    assert p.grad is not None and float(p.grad.double().norm()) <= found[name]
                    attained[name] = max(attained[name], float(p.grad.double().norm()) / found[name])
    if scale == 30.0:  # a constant that were smaller would be exceeded
        assert attained["1.weight"] > 0.99 and attained["5.weight"] > 0.99


def test_a_model_whose_bounds_need_a_weight_has_no_constants() -> None:
    model = gated()
    assert bounds(nn.Sequential(dn.BallProjection(1.0), nn.Linear(6, 4))) is not None
    assert bounds(nn.Sequential(*model, nn.ReLU(), nn.Linear(4, 4))) is None
    del model[2]  # the first gradient ball
    assert bounds(model) is None


def test_a_tied_weight_keeps_its_one_name() -> None:
    model = gated()
    model[5] = nn.Linear(8, 8)
    model.insert(6, dn.GradientBall(0.25))
    model.insert(7, dn.BallProjection(2.0))
    model.insert(8, model[5])
    model[12] = nn.Linear(8, 4)
    found = bounds(model)
    assert found is not None and found["5.weight"] >= 2 * 0.25 * 2.0 and "8.weight" not in found


class Held(nn.Module):
    """Multiplies by a plain tensor attribute, which anyone may change in place."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.ones(6)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def test_tensors_that_are_not_parameters_are_unknown_too() -> None:
    below = nn.Sequential(dn.BallProjection(1.0), Held(), nn.Linear(6, 4))
    assert bounds(below) is None
    assert bounds(nn.Sequential(Held(), dn.BallProjection(1.0), nn.Linear(6, 4))) is not None


class Peeking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def test_a_rule_that_reads_a_weight_by_itself_gives_no_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_RULES", registry.registered())

    @dplip.rule(Peeking)
    def peeking(module: Peeking, x: Norms) -> tuple[Norms, object]:
        largest = float(module.weight.detach().abs().max())
        return x * largest, lambda v: ((v * largest,), {"weight": Norms(x.shape, l2=x.l2 * v.linf)})

    model = nn.Sequential(dn.BallProjection(1.0), Peeking(), nn.Linear(6, 4))
    assert bounds(model) is None
    assert dplip.sensitivity(model, CrossEntropy(), (6,))["1.weight"] > 0


# -------------------------------------------------------------------------------------------------- bounded layers


def stock() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 3, 2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 8)),
        *(nn.Tanh(), nn.Linear(8, 4, bias=False)),
    )


def test_a_stock_model_becomes_bounded_with_the_same_parameters_and_outputs() -> None:
    model = stock()
    before, keys = model(X), list(model.state_dict())
    parameters = list(model.parameters())
    dplip.constrain(model[4], "weight", dplip.Orthogonal())
    after = model(X)
    assert dn.bound_gradients(model, 0.5) is model
    assert [type(layer).__name__ for layer in model if not isinstance(layer, nn.Tanh)].count("BoundedLinear") == 2
    assert list(model.state_dict()) == keys and all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert torch.equal(model(X), after) and not torch.equal(before, after)
    assert "constraints" in dict(model[4].named_children())
    layer = nn.Linear(3, 2)
    assert type(dn.bound_gradients(layer)) is dn.BoundedLinear
    tied = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    tied.append(tied[0])
    dn.bound_gradients(tied)
    assert tied[0] is tied[2]


def test_a_large_radius_leaves_the_gradients_of_the_stock_model() -> None:
    model, bounded = stock(), dn.bound_gradients(stock(), 1e6)
    for m in (model, bounded):
        CrossEntropy()(m(X), Y).backward()
    for p, q in zip(model.parameters(), bounded.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-6)


def test_every_example_is_scaled_by_itself_to_the_radius() -> None:
    layer = dn.BoundedLinear(6, 4, radius=0.5)
    v = torch.randn(12, 4, generator=torch.Generator().manual_seed(5))
    layer(X).backward(v)
    weight, bias = torch.zeros(4, 6), torch.zeros(4)
    for x, row in zip(X, v, strict=True):
        outer = torch.outer(row, x)
        weight += outer * min(1.0, 0.5 / float(outer.norm()))
        bias += row * min(1.0, 0.5 / float(row.norm()))
    assert layer.weight.grad is not None and layer.bias.grad is not None
    torch.testing.assert_close(layer.weight.grad, weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.bias.grad, bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("huge", [False, True])
def test_an_example_far_out_changes_no_other_row(huge: bool) -> None:
    """Rows just below the radius, and rows of huge and tiny factors, are treated alike whatever the others are."""
    layer = dn.BoundedLinear(2, 2, bias=False, radius=math.sqrt(0.5) * (1 + 1.3e-6)).double()
    angles = torch.linspace(-0.3, 0.3, 3000, dtype=torch.float64)
    x = torch.stack([angles.cos(), angles.sin()], 1)
    v = torch.tensor([[0.5, -0.5]], dtype=torch.float64).expand(len(x), 2)
    if huge:  # a product of ordinary size, of factors that are not
        x, v = x * 1e40, v * 0.5e-40

    def gradient(x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        layer.zero_grad()
        layer(x).backward(v)
        assert layer.weight.grad is not None
        return layer.weight.grad.clone()

    far, away = torch.tensor([[50.0, 0.0], [-50.0, 50.0]], dtype=torch.float64).split(1)
    moved = gradient(torch.cat([x, far]), torch.cat([v, away])) - gradient(x, v)
    assert float(moved.norm()) <= layer.radius * (1 + 1e-9)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e15, 1e30])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e15, 1e30, math.nan, math.inf])
def test_no_example_exceeds_the_radius_of_a_bounded_layer(scale: float, size: float) -> None:
    model, loss = dn.bound_gradients(stock(), 0.5), CrossEntropy()
    found = bounds(model)
    assert found is not None and all(0.5 <= b <= 0.5 * (1 + 1e-4) for b in found.values())
    generator = torch.Generator().manual_seed(2)
    for p in model.parameters():
        p.data = scale * torch.randn(p.shape, generator=generator)
    for x, y in zip(X[:6], Y[:6], strict=True):
        model.zero_grad()
        x = x.clone()
        x[0] *= size
        loss(model(x[None]), y[None]).backward()
        for name, p in model.named_parameters():
            assert p.grad is not None and float(p.grad.double().norm()) <= found[name]


def test_bounded_layers_train_a_stock_model_without_a_bound_on_its_input() -> None:
    model = dn.bound_gradients(stock(), 0.5)
    run = private(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), noise_multiplier=1.0)
    run.step(X, Y)
    assert len(run.charged) == 1 and set(run.optimizer.sensitivities()) == set(dict(model.named_parameters()))
    assert dplip.lipschitz(model.train(), (6,)) == dplip.lipschitz(model.eval(), (6,))  # its input's cotangent is true


def test_the_certificate_of_a_bounded_layer_goes_through_its_rows() -> None:
    model = nn.Sequential(nn.Linear(6, 4))
    radii = dplip.certify(model, X)
    assert torch.equal(dplip.certify(dn.bound_gradients(model), X), radii)


# -------------------------------------------------------------------------------------------------- the optimizer


def test_a_step_with_constant_bounds_computes_no_operator_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    run = private(gated(), noise_multiplier=1.0)

    def refused(*_: object) -> float:
        raise AssertionError("an operator norm was computed")

    monkeypatch.setattr("dplip.norms.matrix.spectral_norm", refused)
    before = dict(run.optimizer.sensitivities())
    for p in run.model.parameters():
        p.data.mul_(100)
    run.step(X, Y)
    assert dict(run.optimizer.sensitivities()) == before and len(run.charged) == 1


def test_the_constants_follow_the_loss_and_the_mode() -> None:
    run = private(gated(), loss=CrossEntropy())
    whole = run.optimizer.sensitivities()["9.weight"]
    run.loss.max_gradient = 0.1
    assert run.optimizer.sensitivities()["9.weight"] == pytest.approx(whole * 0.1 / math.sqrt(2))
    run.model[2].radius = 0.05
    before = run.optimizer.sensitivities()["1.weight"]
    assert before == pytest.approx(3.0 * 0.05, rel=1e-3)
    run.model.eval()  # the gradient balls are open now
    for p in run.model.parameters():
        p.data.mul_(100)
    assert run.optimizer.sensitivities()["1.weight"] > 10 * before


def test_projection_every_few_steps() -> None:
    model = nn.Sequential(dn.BallProjection(3.0), dplip.nn.OrthogonalLinear(6, 4))
    run = private(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.5), project_every=3)
    apart = []
    for _ in range(6):
        run.step(X, Y)
        weight = model[1].weight.detach()
        apart.append(float((weight @ weight.T - torch.eye(4)).norm()))
    assert all(distance > 0.05 for distance in (apart[0], apart[1], apart[3], apart[4]))
    assert apart[2] < 0.05 and apart[5] < 0.05
    with pytest.raises(ConfigurationError, match="project_every"):
        private(model, project_every=0)
