"""The search for long gradients: it has power, and finds none beyond the declared."""

import copy

import pytest
import torch
from helpers.models import built
from helpers.runs import examples

import dplip
from dplip import audit
from dplip.losses import CrossEntropy, Huber


@pytest.mark.parametrize("name", ["orthogonal", "plain", "convolutional", "residual", "tied", "clamped", "tokens"])
def test_the_search_finds_long_gradients_and_none_beyond_the_declared(name):
    model, shape = built(name, seed=1)
    found = audit.gradient_search(model, CrossEntropy(16.0), shape, starts=8, steps=6)
    assert not found.violated
    least = {"orthogonal": 0.999, "plain": 0.6, "residual": 0.35, "clamped": 0.5, "tokens": 0.4}.get(name, 0.05)
    assert min(found.tightness.values()) >= least
    assert found.total <= found.declared.total


def test_the_search_finds_more_than_a_bound_that_is_a_hundredth_too_small(monkeypatch):
    from dplip.audit import gradient
    from dplip.sensitivities import Sensitivities, sensitivity

    def small(*arguments):
        return Sensitivities({n: 0.99 * b for n, b in sensitivity(*arguments).items()})

    monkeypatch.setattr(gradient, "sensitivity", small)
    model, shape = built("orthogonal")
    found = audit.gradient_search(model, CrossEntropy(16.0), shape, starts=6, steps=4)
    assert found.violated and max(found.tightness.values()) > 1


def test_the_search_starts_from_data_and_leaves_model_and_loss_as_they_were():
    model, shape = built("plain")
    loss, before = CrossEntropy(), copy.deepcopy(model.state_dict())
    loss.monitor = monitor = object()
    found = audit.gradient_search(model, loss, shape, examples(5), starts=3, steps=2)
    x, y = found.worst
    assert x.shape == shape and y.ndim == 0 and found.tried > 20
    assert loss.monitor is monitor
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_search_knows_regressions_and_models_of_one_output():
    for loss in (Huber(), dplip.losses.BinaryCrossEntropy(16.0), dplip.losses.Hinge()):
        model, shape = built("plain")
        model = model[:-1].append(torch.nn.Linear(8, 1))
        found = audit.gradient_search(model, loss, shape, starts=4, steps=3)
        assert not found.violated and found.tightness["3.bias"] > 0.99
