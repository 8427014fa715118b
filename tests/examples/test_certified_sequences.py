"""The models of examples/certified_sequences.py have a Lipschitz constant of 1, and radii that hold."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

import dplip
from dplip.data import load


@pytest.fixture(scope="module")
def example() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "examples" / "certified_sequences.py"
    spec = importlib.util.spec_from_file_location("certified_sequences", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("mixing", ["rolls", "attention"])
def test_its_models_are_certified(example, mixing):
    data = load("digits")
    torch.manual_seed(0)
    model = example.model_of(data, mixing, radius=10.0, blocks=2).eval()
    assert dplip.lipschitz(model, data.input_shape) == pytest.approx(1, rel=1e-4)
    x = data.test.tensors[0][:60]
    radii = dplip.certify(model, x)
    assert bool((radii > 0).all())
    assert example.changed(model, x, 0.999 * radii) == 0.0
    assert example.changed(model, x, 4 * radii) > 0.5
