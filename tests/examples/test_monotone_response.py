"""The example of a monotone response."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import torch


def test_the_responses_of_the_example_rise_within_their_band(tmp_path, monkeypatch, capsys):
    path = Path(__file__).resolve().parents[2] / "examples" / "monotone_response.py"
    spec = importlib.util.spec_from_file_location("monotone_response", path)
    assert spec is not None
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
