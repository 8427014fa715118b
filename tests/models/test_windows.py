"""Presets of windows and their recipes: checked, and with bounds that are attained."""

import dataclasses
import math
from math import inf

import pytest
import torch
from torch import nn

import dplip
from dplip.errors import ConfigurationError
from dplip.losses import CrossEntropy
from dplip.models import ImageRecipe, Recipe, preset
from dplip.models.windows import WindowRecipe


def small(**changes) -> WindowRecipe:
    recipe = preset("mnist", "windows")
    assert isinstance(recipe, WindowRecipe)
    return dataclasses.replace(recipe, **changes)


@pytest.mark.parametrize("lr", [0.0, -1.0, inf, math.nan])
def test_a_recipe_needs_a_learning_rate(lr):
    with pytest.raises(ConfigurationError, match="learning rate"):
        small(lr=lr)


def test_a_recipe_alone_builds_nothing():
    with pytest.raises(TypeError, match="abstract"):
        Recipe(lr=0.1, batch_size=8, epochs=1)  # type: ignore[abstract]


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


def weight_bound_over_attained(recipe: ImageRecipe) -> float:
    """Of the linear layer: an outer product of a cotangent of norm 1 and features of norm at most 0.2 sqrt(n)."""
    model = recipe.model((1, 8, 8), 2)
    model[-1].weight.data.zero_()
    model[-1].bias.data.zero_()
    loss = recipe.loss()
    bounds = dplip.sensitivity(model, loss, (1, 8, 8))
    value = loss(model(torch.ones(1, 1, 8, 8)), torch.tensor([0])).sum()
    gradients = torch.autograd.grad(value, list(model[-1].parameters()))
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
