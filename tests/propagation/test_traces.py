"""Traces: one for each mode, current as long as the model is, and without a trace in the model."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dplip
from dplip import Norms, UnboundedOperationError
from dplip.propagation import Walk


def test_dropout_scales_in_training_only() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.75))
    with torch.no_grad():
        nn.init.eye_(model.get_parameter("0.weight"))
        model[0].bias.zero_()
    walk = Walk(model, (4,))
    for train, expected in ((True, 4.0), (False, 1.0), (True, 4.0)):
        model.train(train)
        assert walk.current() == train
        output, pullback = dplip.propagate(model, (4,), Norms((4,), l2=1.0))
        assert expected <= output.l2 <= expected * 1.0001
        assert expected <= pullback(Norms((4,), l2=1.0))[0].l2 <= expected * 1.0001


class Switch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 5 * x if self.training else x


def test_each_mode_is_traced_for_itself() -> None:
    model = Switch()
    assert dplip.propagate(model.train(), (4,), Norms((4,), l2=1.0))[0].l2 == 5.0
    assert dplip.propagate(model.eval(), (4,), Norms((4,), l2=1.0))[0].l2 == 1.0


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = 2.0
        self.linear = nn.Linear(4, 4)
        self.register_buffer("gain", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x * self.factor) * (2 * self.gain)


def changed_factor(model: Scaled) -> None:
    model.factor = 20.0


def changed_hook(model: Scaled) -> None:
    model.linear.register_forward_hook(lambda *_: None)


def changed_gradient_hook(model: Scaled) -> None:
    model.linear.weight.register_hook(lambda g: 10 * g)


def changed_forward(model: Scaled) -> None:
    model.linear.forward = lambda x: 5 * x  # type: ignore[assignment]


def changed_layer(model: Scaled) -> None:
    model.linear = nn.Linear(4, 4)


def changed_class(model: Scaled) -> None:
    class Other(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 9 * super().forward(x)

    model.linear.__class__ = Other


def changed_freezing(model: Scaled) -> None:
    model.linear.weight.requires_grad_(False)


CHANGES = [
    *(changed_factor, changed_hook, changed_gradient_hook, changed_forward, changed_layer, changed_class),
    changed_freezing,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_trace_is_not_current_once_the_model_has_changed(change: Callable[[Scaled], None]) -> None:
    """Either the walk knows that it must be made anew, or it refuses what was added."""
    model = Scaled()
    walk = Walk(model, (4,))
    assert walk.current()
    change(model)
    try:
        assert not walk.current()
    except UnboundedOperationError:
        return


def test_a_walk_reads_the_weights_and_buffers_that_are_there() -> None:
    model = Scaled()
    walk = Walk(model, (4,))
    before = walk(Norms((4,), l2=1.0))[0].l2
    with torch.no_grad():
        model.gain.mul_(3)
    assert walk.current()
    assert walk(Norms((4,), l2=1.0))[0].l2 >= 2.99 * before
    model.gain = torch.full((4,), 6.0)
    with torch.no_grad():
        model.linear.weight.mul_(2)
        model.linear.bias.mul_(2)
    assert walk(Norms((4,), l2=1.0))[0].l2 >= 11.9 * before


def test_walking_leaves_the_model_and_the_random_states_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.LayerNorm(4, elementwise_affine=False)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    dplip.propagate(model, (4,))
    drawn = torch.rand(()), random.random(), np.random.rand()
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    assert drawn == (torch.rand(()), random.random(), np.random.rand())
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_walking_puts_back_every_weight_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4).requires_grad_(False)).eval()
    places = {k: (v.data_ptr(), v._version, v.clone()) for k, v in model.state_dict(keep_vars=True).items()}
    dplip.propagate(model, (4,))
    for k, v in model.state_dict(keep_vars=True).items():
        place, version, values = places[k]
        assert (v.data_ptr(), v._version) == (place, version) and torch.equal(v, values)


def test_walks_refuse_norms_of_another_shape() -> None:
    walk = Walk(nn.Linear(4, 2), (4,))
    with pytest.raises(dplip.ConfigurationError, match="input_norms"):
        walk(Norms((3,), l2=1.0))
    with pytest.raises(dplip.ConfigurationError, match="cotangent"):
        walk(Norms((4,), l2=1.0))[1](Norms((3,), l2=1.0))
    with pytest.raises(dplip.ConfigurationError, match="input_shape"):
        Walk(nn.Linear(4, 2), (5,))
