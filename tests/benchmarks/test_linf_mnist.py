"""The benchmark of l-infinity networks runs on small data, and its figures are in order."""

import dataclasses
import importlib
import math
from math import inf
from pathlib import Path

import pytest
import torch

import dplip
from dplip.losses import ClippedHinge
from dplip.models import preset


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    return importlib.import_module("linf_mnist")


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
