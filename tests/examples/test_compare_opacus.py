"""The comparison with Opacus runs end to end, and its figures are of one kind."""

import importlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch

import dplip


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "examples"))
    return importlib.import_module("compare_opacus")


@pytest.mark.parametrize("network", ["cnn", "mlp"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_the_bound_of_the_clipped_network_is_at_least_what_gradients_attain(example, shape, network):
    torch.manual_seed(0)
    model = example.NETWORKS[network](shape, 10).eval()
    x = torch.rand(16, *shape, requires_grad=True)
    scores = model(x)
    (slope,) = torch.autograd.grad(scores[:, 0].sum(), x)
    assert 0 < float(slope.flatten(1).norm(dim=1).max()) <= dplip.lipschitz(model, shape)


def test_both_sides_are_compared_at_one_budget(example, monkeypatch, tmp_path):
    # One process, so that the libraries are loaded once: each run in a process of its own is what main() adds.
    monkeypatch.setattr(example, "separate", lambda arguments, *run: example.run(arguments, *run))
    options = ["--quick", "--seeds", "1", "--epsilon", "4", "8", "--methods", "cnn", "l2", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["", *options])
    example.main()
    found = json.loads((tmp_path / "compare.json").read_text())
    assert {(r["method"].partition("-")[0], r["target_epsilon"]) for r in found["runs"]} >= {
        (method, epsilon) for method in ("cnn", "l2") for epsilon in (4, 8)
    }
    for run in found["runs"]:
        # Opacus searches for its noise to a hundredth of epsilon, from below; dplip to far less.
        assert 0.97 * run["target_epsilon"] <= run["epsilon"] <= run["target_epsilon"]
        assert run["curve"] == sorted(run["curve"], reverse=True)
        assert run["certified"][0] == run["curve"][0] > 0.2
        assert math.isfinite(run["lipschitz"])
    assert [mode["method"] for mode in found["modes"]] == ["cnn-hooks-time", "cnn-ghost-time"]
    assert (tmp_path / "compare.png").stat().st_size > 0
    assert (tmp_path / "compare.md").read_text().count("\n| ") >= 5
