"""Presets for l-infinity: their recipes are checked, their models bounded, and the benchmark runs on small data."""

import dataclasses
import importlib
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import dplip
from dplip.errors import ConfigurationError
from dplip.losses import ClippedHinge, CrossEntropy
from dplip.models import Recipe, preset
from dplip.models.windows import WindowPreset

torch.set_num_threads(1)
inf = math.inf


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "benchmarks"))
    return importlib.import_module("linf_mnist")


def small(**changes) -> WindowPreset:
    recipe = preset("mnist", "windows")
    assert isinstance(recipe, WindowPreset)
    return dataclasses.replace(recipe, **changes)


@pytest.mark.parametrize("lr", [0.0, -1.0, inf, math.nan])
def test_a_recipe_needs_a_learning_rate(lr):
    with pytest.raises(ConfigurationError, match="learning rate"):
        small(lr=lr)


def test_a_recipe_alone_builds_nothing():
    with pytest.raises(TypeError, match="abstract"):
        Recipe(lr=0.1, batch_size=8, epochs=1)


def test_a_recipe_needs_no_schedule():
    recipe = small()
    model = recipe.model((1, 8, 8), 10)
    optimizer = recipe.optimizer(model)
    assert isinstance(recipe.loss(), CrossEntropy)
    assert recipe.scheduler(optimizer, model, recipe.loss(), 10) is None
    assert optimizer.param_groups[0]["lr"] == recipe.lr and optimizer.param_groups[0]["momentum"] == recipe.momentum


@pytest.mark.parametrize(("shape", "window", "stride", "features"), [((1, 28, 28), 3, 2, 196), ((3, 9, 8), 5, 2, 60)])
def test_windows_are_as_many_as_the_stride_says(shape, window, stride, features):
    model = small(window=window, stride=stride).model(shape, 7)
    assert isinstance(model[-1], nn.Linear) and model[-1].weight.shape == (7, features)
    assert model(torch.rand(2, *shape)).shape == (2, 7)


def weight_bound_over_attained(recipe: Recipe) -> float:
    """Of the linear layer: an outer product of a cotangent of norm 1 and features of norm at most 0.2 sqrt(n)."""
    model = recipe.model((1, 8, 8), 2)
    model[-1].weight.data.zero_()
    model[-1].bias.data.zero_()
    loss = recipe.loss()
    bounds = dplip.sensitivity(model, loss, (1, 8, 8))
    value = loss(model(torch.ones(1, 1, 8, 8)), torch.tensor([0])).sum()
    gradients = torch.autograd.grad(value, model[-1].parameters())
    ratios = [bound / float(g.norm()) for bound, g in zip(bounds.values(), gradients, strict=True)]
    assert all(r >= 1 for r in ratios) and ratios[1] < 1.001
    return ratios[0]


def test_the_bound_of_windows_is_attained():
    assert 1 <= weight_bound_over_attained(small()) < 1.001


def test_windows_are_maxima_of_cut_pixels_less_the_middle():
    torch.manual_seed(0)
    model = small().model((1, 8, 8), 10).eval()
    x = torch.rand(50, 1, 8, 8)
    features = nn.functional.max_pool2d(x.clamp(0.3, 0.7), 3, 2, 1).flatten(1) - 0.5
    assert torch.allclose(model(x), model[-1](features), atol=1e-6)


def test_a_change_in_the_margin_of_black_and_white_moves_nothing():
    torch.manual_seed(0)
    model = small().model((1, 8, 8), 10).eval()
    x = torch.rand(20, 1, 8, 8).round()
    moved = (x + (torch.rand_like(x) * 2 - 1) * 0.3).clamp(0, 1)
    assert torch.equal(model(x), model(moved))
    assert bool((dplip.certify(model, x, inf) > 0.3).all())


@pytest.mark.parametrize("field", [{"low": 0.0, "high": 1.0}, {"low": 0.3, "high": 0.7}])
def test_the_standard_network_is_certified_at_one(script, field):
    recipe = dataclasses.replace(script.STANDARD, widths=(12, 6), **field)
    torch.manual_seed(0)
    model = recipe.model((1, 8, 8), 10)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(5)
    dplip.project(model)
    assert dplip.lipschitz(model, (1, 8, 8), norm=inf) <= 1 + 1e-4  # rounding, counted from above
    assert all(math.isfinite(s) for s in dplip.sensitivity(model, recipe.loss(), (1, 8, 8)).values())


def test_fields_are_replaced_where_a_recipe_has_them(script):
    changed = script.changed(script.STANDARD, ["lr=0.5", "widths=[8]", "momentum=0.1"], 3)
    assert (changed.lr, changed.widths, changed.epochs) == (0.5, [8], 3)
    assert isinstance(preset("mnist", "sortnet").loss(), ClippedHinge)


@pytest.mark.parametrize("epsilon", ["inf", "8"])
def test_the_benchmark_runs_and_its_figures_are_in_order(script, epsilon, tmp_path, capsys):
    pytest.importorskip("foolbox")
    rows = script.main(["--quick", "--held-out", "--epsilon", epsilon, "--json", str(tmp_path / "rows.json")])
    assert [row["model"] for row in rows] == list(script.RECIPES[epsilon == "8"])
    for row in rows:
        assert row["clean"] >= row["certified"]["0.1"] >= row["certified"]["0.3"]
        for at in row["first"]:
            assert at["certified"] <= at["attacked"] <= at["clean"]
    assert (tmp_path / "rows.json").stat().st_size and capsys.readouterr().out.count("\n") == 2 + len(rows)


def test_a_false_certificate_is_noticed(script, monkeypatch):
    pytest.importorskip("foolbox")
    recipe = dataclasses.replace(script.STANDARD, widths=())
    model = recipe.model((1, 4, 4), 3).eval()
    x = torch.rand(30, 1, 4, 4)
    data = torch.utils.data.TensorDataset(x, model(x).argmax(1))
    monkeypatch.setattr(script, "correct_radii", lambda *_: torch.full((30,), 0.5, dtype=torch.float64))
    with pytest.raises(AssertionError, match="succeeds"):
        script.judge(model, data, 30, 10)
