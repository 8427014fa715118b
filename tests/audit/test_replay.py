"""Neighbouring steps are replayed: they differ within the sensitivity and in nothing else."""

from typing import Any

import pytest
import torch
from helpers.enforced import CASES, items
from helpers.models import built
from helpers.runs import examples
from torch.utils.data import default_collate

import dplip
from dplip import audit
from dplip.losses import CrossEntropy
from dplip.training.calls import Calls


@pytest.mark.parametrize("name", ["orthogonal", "plain", "convolutional", "residual", "tied"])
@pytest.mark.parametrize("neighboring, most", [("add_remove", None), ("replace_one", 3)])
def test_neighbouring_steps_differ_within_the_sensitivity_and_in_nothing_else(name, neighboring, most):
    model, shape = built(name)
    x = torch.randn(30, *shape, generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.TensorDataset(x, torch.arange(30) % 4)
    moved = audit.replay(
        model,
        CrossEntropy(8.0),
        data,
        example=(torch.full(shape, 1e6), torch.tensor(0)),
        input_shape=shape,
        neighboring=neighboring,
        max_physical_batch_size=most,
        steps=6,
    )
    assert not moved.violated and moved.differing >= 2
    assert 0 < moved.joint <= 1


# Not "noise inside": neighbours draw their noise in another order.
@pytest.mark.parametrize("name", [name for name in CASES if name != "noise inside"])
def test_neighbouring_steps_of_models_of_any_code_differ_within_the_radii(name):
    case = CASES[name]
    data: Any = items(case, 24)
    model = dplip.nn.bound_gradients(case.model().train())
    call, _ = Calls(model).of(default_collate(data[:1]))
    moved = audit.replay(model, case.loss, data, input_shape=dplip.Example.of_batch(*call), steps=6)
    assert not moved.violated and moved.differing >= 2
    assert 0 < moved.joint <= 1


def test_replay_sees_that_a_batch_is_divided_by_its_own_size(monkeypatch):
    from dplip.training import DPLipOptimizer

    monkeypatch.setattr(DPLipOptimizer, "_check_constants", lambda self: None)
    monkeypatch.setattr(
        DPLipOptimizer, "expected_batch_size", property(lambda self: max(1.0, self.batches.expected_batch_size) + 1)
    )
    model, shape = built("plain")
    moved = audit.replay(model, CrossEntropy(), examples(), input_shape=shape, steps=3)
    assert moved.violated and "not the noisy sum" in moved.problems[0]
