"""The spline examples: what they compare with is exact, and what they claim of their networks holds."""

import importlib
import itertools
from pathlib import Path

import pytest
import torch

import dplip
from dplip.nn.splines.spline import Spline


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "examples"))
    return importlib.import_module


def test_broken_lines_have_their_slopes_and_stay_continuous(example):
    functions = example("spline_functions").functions()
    x = torch.linspace(-1, 1, 20001)[:, None]
    for name, allowed in (("f1: slopes 1, -1", (-1, 1)), ("f2: slopes 1, 0, -1", (-1, 0, 1))):
        slopes = functions[name](x.double()).diff(dim=0)[:, 0] / (2 / 20000)
        near = torch.stack([(slopes - s).abs() for s in allowed]).min(0).values
        assert float((near > 1e-2).double().mean()) < 1e-3  # but at the knots
        assert float(slopes.abs().max()) <= 1.01


@pytest.mark.parametrize("name", ["ReLU", "absolute value", "PReLU", "GroupSort", "Householder", "spline"])
def test_models_side_by_side_do_not_mix_and_are_1_lipschitz(example, name):
    functions = example("spline_functions")
    function = functions.functions()["f1: slopes 1, -1"]
    errors, network = functions.fit(function, functions.ALL[name], 1e-2, steps=5, models=3, seed=0)
    assert len(set(errors)) == 3
    x = (4 * torch.rand(1, 3, 50) - 2).requires_grad_()
    y = network(x)
    for model in range(3):
        (slopes,) = torch.autograd.grad(y[0, model].sum(), x, retain_graph=True)
        assert bool((slopes[0, torch.arange(3) != model] == 0).all())
        assert 0 < float(slopes[0, model].abs().max()) <= 1 + 1e-3


@pytest.mark.parametrize("name", ["ReLU", "GroupSort", "spline"])
def test_an_estimated_distance_is_a_lower_bound(example, name):
    wasserstein = example("wasserstein")
    x = torch.randn(300, 2)
    for pair in (wasserstein.shifted(x, 2.0), wasserstein.scaled(x, 2.0)):
        assert 0.1 < wasserstein.estimate(pair, wasserstein.ALL[name], 60, 0) <= 1 + 1e-6
    (shift,) = {round(float(s), 4) for s in (wasserstein.shifted(x, 2.0).p - x).norm(dim=1)}
    assert shift == 2.0


@pytest.mark.parametrize("name", ["ReLU", "spline"])
def test_the_denoiser_is_firmly_nonexpansive_and_its_iteration_contracts_changes(example, name):
    denoiser = example("denoiser")
    clean = torch.rand(20, 1, 8, 8)
    model = denoiser.train(denoiser.ALL[name], clean, 0.1, 10, 0)
    assert dplip.lipschitz(model.residual, (1, 8, 8)) <= 1 + 1e-4
    a, b = torch.rand(200, 1, 8, 8), torch.rand(200, 1, 8, 8)
    with torch.no_grad():
        moved, kept = model(a) - model(b), (a - model(a)) - (b - model(b))
    total = moved.square().flatten(1).sum(1) + kept.square().flatten(1).sum(1)
    assert bool((total <= (a - b).square().flatten(1).sum(1) * (1 + 1e-4)).all())
    blur = denoiser.Blur((8, 8))
    impulse = torch.zeros(1, 1, 8, 8)
    impulse[..., 0, 0] = 1.0
    assert float(blur(impulse).sum()) == pytest.approx(1.0, abs=1e-5)
    for step, scale in itertools.product(denoiser.STEPS, (0.1, 1.0)):
        _, changes = denoiser.deblur(model, blur(clean), blur, step, scale, 40)
        assert all(later <= earlier * (1 + 1e-4) + 1e-7 for earlier, later in itertools.pairwise(changes))


def test_a_tight_frame_keeps_norms_and_the_denoiser_starts_as_the_identity(example):
    denoiser = example("denoiser")
    model = denoiser.Denoiser(lambda width: torch.nn.Identity())
    x = torch.rand(5, 1, 9, 7)
    with torch.no_grad():
        assert torch.allclose(model(x), x, atol=1e-5)
        coefficients = model.residual[0](x)
        assert torch.allclose(coefficients.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1), rtol=1e-5)
        model.residual[0].weight.copy_(torch.randn(16, 1, 3, 3))
    dplip.project(model)
    assert dplip.lipschitz(model.residual, (1, 9, 7)) == pytest.approx(1.0, abs=1e-4)


def test_splines_make_the_denoiser_soft_thresholding(example):
    # Slopes 1, -1, 1 of the splines of R: D = (I + R) / 2 shrinks each coefficient of the frame towards 0.
    denoiser = example("denoiser")
    start = iter([lambda t: t - 2 * t.clamp(-0.05, 0.05), torch.clone])
    model = denoiser.Denoiser(lambda width: dplip.nn.LinearSpline(width, 41, 0.1, next(start)))
    dplip.project(model)
    analysis = model.residual[0]
    x = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        shrunk = torch.nn.functional.softshrink(analysis(x - 0.5), 0.05)
        expected = 0.5 + torch.nn.functional.conv_transpose2d(shrunk, analysis.weight, padding=2)
        assert torch.allclose(model(x), expected, atol=1e-5)


def test_every_activation_of_the_examples_is_1_lipschitz(example):
    nets = example("spline_nets")
    for name, make in nets.ACTIVATIONS.items():
        layer = make(8)
        if name == "absolute value":
            assert dplip.lipschitz(layer, (8,)) == 1.0
        dplip.project(layer)
        assert dplip.lipschitz(layer, (8,)) <= 1 + 1e-6
    model = example("spline_functions").network(nets.ACTIVATIONS["spline"], 2)
    rates = {id(p): g["lr"] for g in nets.groups(model, 0.1, 2.0) for p in g["params"]}
    assert len(rates) == len(list(model.parameters()))
    own = [p for m in model.modules() if isinstance(m, Spline) for p in m.parameters()]
    assert all(rates[id(p)] == 0.2 for p in own)
