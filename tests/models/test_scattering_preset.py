"""The accuracy preset end to end: trained on features of its front end, certified and audited as a whole."""

import dataclasses
import functools
import json
import math
import sys
from typing import Any

import pytest
import torch

import dplip
from dplip import nn as dn
from dplip.cli.main import main
from dplip.data import load
from dplip.data.dead_leaves import dead_leaves
from dplip.models import ScatteringPreset, preset, scattering
from dplip.models.presets import KINDS
from dplip.models.scattering import SCATTERINGS
from dplip.training.feature_extractor import split_extractor


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["dplip", *map(str, arguments)])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@torch.no_grad()
def few_features(channels: int, size: int, *arguments: Any) -> torch.Tensor:
    """The maps of fifty synthetic images, where a preset takes a thousand."""
    return torch.nn.Sequential(*scattering._fixed_maps(channels, size, *arguments))(dead_leaves(50, size, channels))


@pytest.mark.parametrize("name", SCATTERINGS)
def test_the_sensitivity_of_a_preset_is_the_radius_of_its_ball_or_of_its_gradients(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(scattering, "_synthetic_features", functools.cache(few_features))
    recipe = preset(name, "scattering")
    assert isinstance(recipe, ScatteringPreset)
    shape = {"digits": (1, 8, 8), "cifar10": (3, 32, 32)}.get(name, (1, 28, 28))
    model = recipe.model(shape, 10)
    fixed, rest = split_extractor(model, recipe.loss(), shape)
    assert type(fixed[-1]) is torch.nn.Flatten  # all that is computed once
    features = fixed(torch.rand(1, *shape)).shape[1:]
    bounds = dplip.sensitivity(rest, recipe.loss(), tuple(features))
    radius = math.hypot(*recipe.gradient_radii or [recipe.radius])
    assert bounds.total == pytest.approx(radius, rel=1e-4)
    assert bounds.total >= radius
    assert model(torch.rand(3, *shape)).shape == (3, 10)
    with torch.no_grad():  # a setting that reaches the report builds the same model again
        kind: Any = KINDS["scattering"]
        again = kind(**json.loads(json.dumps(dataclasses.asdict(recipe)))).model(shape, 10)
        again.load_state_dict(model.state_dict())
        x = torch.rand(2, *shape)
        assert torch.equal(again(x), model(x))
    learned = [torch.nn.Linear] if not recipe.widths else [dn.BoundedLinear, dn.GroupSort, dn.BoundedLinear]
    mean = [] if recipe.mean_radius is None else [dn.PrivateMean]
    assert [type(layer) for layer in rest] == [*mean, dn.BallProjection, *learned]
    assert len(list(model.parameters())) == len(recipe.widths) + 1


def test_the_gradient_of_a_lone_layer_is_bounded_too():
    recipe = dataclasses.replace(SCATTERINGS["digits"], gradient_radii=(2.0,))
    assert isinstance(recipe, ScatteringPreset)
    assert dplip.sensitivity(recipe.model((1, 8, 8), 10), recipe.loss(), (1, 8, 8)).total == pytest.approx(2, rel=1e-4)


def test_a_full_batch_is_of_the_public_size_whatever_the_size_of_the_data():
    recipe, data = dataclasses.replace(preset("digits", "scattering"), batch_size=None), load("digits")
    for train in (data.train, torch.utils.data.Subset(data.train, range(1000))):
        run = recipe.trainer(data, train_dataset=train, public_size=2000, noise_multiplier=1.0, progress=False)
        assert run.loader.sample_rate == 1 and run.loader.expected_batch_size == 2000
    assert recipe.trainer(data, noise_multiplier=1.0, progress=False).loader.sample_rate == 1


def test_no_example_has_a_longer_gradient_than_the_sensitivity():
    recipe, data = preset("digits", "scattering"), load("digits")
    model, loss = recipe.model((1, 8, 8), 10), recipe.loss()
    bound = dplip.sensitivity(model, loss, (1, 8, 8)).total
    x = torch.stack([data.train[0][0], torch.zeros(1, 8, 8), torch.full((1, 8, 8), 1e30), torch.rand(1, 8, 8)])
    x = torch.cat([x, torch.randn(20, 1, 8, 8) * 10 ** torch.linspace(-8, 8, 20)[:, None, None, None]])
    reached = []
    for one in x:
        for label in range(10):
            (g,) = torch.autograd.grad(loss(model(one[None]), torch.tensor([label])), list(model.parameters()))
            reached.append(float(g.norm()))
    assert max(reached) <= bound
    assert max(reached) > 0.99 * bound  # the ball is reached: 1% less would be too little


def test_the_preset_trains_resumes_and_is_certified_by_the_command_line(monkeypatch, tmp_path, capsys):
    common = ("--preset", "accuracy", "--epsilon", 8, "--seed", 0, "--out", tmp_path, "--no-progress")
    assert command(monkeypatch, "train", *common) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["run"]["model"] == "scattering" and report["certified"]["norm"] == 2
    assert report["utility"]["accuracy"] > 0.9 and report["privacy"]["epsilon"] <= 8
    radii, accuracy = report["certified"]["radii"], report["certified"]["accuracy"]
    assert radii[0] == 0 and accuracy[0] == report["utility"]["accuracy"]  # at radius 0: what is right
    capsys.readouterr()
    assert command(monkeypatch, "certify", tmp_path) == 0
    assert "average certified radius" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [("--model", "l2", "--preset", "accuracy"), ("--model", "scattering", "--preset", "certified")],
)
def test_a_model_at_odds_with_the_preset_is_refused(monkeypatch, capsys, arguments):
    assert command(monkeypatch, "train", *arguments) == 2
    assert "--preset" in capsys.readouterr().err


def test_the_preset_of_a_table_is_refused(monkeypatch, capsys):
    assert command(monkeypatch, "train", "--data", "adult", "--preset", "accuracy") == 2
    assert "is a table" in capsys.readouterr().err
