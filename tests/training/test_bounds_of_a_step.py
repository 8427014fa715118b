"""The bounds of a step are those of the model as it then is."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.models import MODELS, built, dropping, plain
from helpers.runs import Handed, X, Y, private
from torch import Tensor, nn

import dplip
import dplip.nn as dn
from dplip.errors import ConfigurationError
from dplip.propagation.guards import guards_of


def grow_data(model: nn.Module) -> None:
    model[3].weight.data.mul_(3.0)


def grow_in_place(model: nn.Module) -> None:
    with torch.no_grad():
        model[3].weight.mul_(3.0)


def grow_by_loading(model: nn.Module) -> None:
    model.load_state_dict({n: 3 * w for n, w in model.state_dict().items()})


def grow_by_assignment(model: nn.Module) -> None:
    model[3].weight.data = 3 * model[3].weight.data


def grow_the_ball(model: nn.Module) -> None:
    model[0].radius = 6.0


def grow_by_another_layer(model: nn.Module) -> None:
    model[2] = nn.Hardswish()


@pytest.mark.parametrize(
    "grow",
    [grow_data, grow_in_place, grow_by_loading, grow_by_assignment, grow_the_ball, grow_by_another_layer],
    ids=lambda f: f.__name__,
)
def test_the_noise_follows_every_change_of_the_model_between_steps(grow):
    model = built("plain")[0]
    run = private(model)
    run.step(X, Y)
    before = dplip.sensitivity(model, run.loss, (6,))
    grow(model)
    present = dplip.sensitivity(model, run.loss, (6,))
    assert present["1.weight"] > 1.2 * before["1.weight"]
    held = run.optimizer.sensitivities()
    for name, bound in present.items():
        assert bound <= held[name] <= 1.03 * bound
    run.noise.draws.clear()
    run.step(X, Y)
    stds = dict(zip(present, (std for _, std in run.noise.draws), strict=True))
    assert sum((present[n] / stds[n]) ** 2 for n in present) <= 1.0 * (1 + 1e-6)


class Scaled(nn.Module):
    """Factors wherever a module may keep a number that its forward reads; tracing makes constants of most of them."""

    shared = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.ball, self.linear = dn.BallProjection(1.0), nn.Linear(6, 4)
        self.scale = self._hidden = 1.0
        self.listed, self.named = [1.0], {"scale": 1.0}
        self.settings, self.number = SimpleNamespace(scale=1.0), np.float32(1.0)
        self.array, self.plain = np.ones(3), torch.ones(3)
        self.register_buffer("width", torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        factor = self.scale * self._hidden * self.listed[0] * self.named["scale"] * self.shared
        factor = factor * self.settings.scale * float(self.number) * float(self.array[0]) * self.plain[0].item()
        return self.linear(self.ball(x) * factor * (1.0 / self.width))


def attribute(model: Scaled) -> None:
    model.scale = 10.0


def underscored_attribute(model: Scaled) -> None:
    model._hidden = 10.0


def entry_of_a_list(model: Scaled) -> None:
    model.listed[0] = 10.0


def entry_of_a_dictionary(model: Scaled) -> None:
    model.named["scale"] = 10.0


def buffer_in_place(model: Scaled) -> None:
    model.width.fill_(0.1)


def buffer_replaced(model: Scaled) -> None:
    model.width = torch.tensor(0.1)


def attribute_of_an_object(model: Scaled) -> None:
    model.settings.scale = 10.0


def number_of_numpy(model: Scaled) -> None:
    model.number = np.float32(10.0)


def entry_of_an_array(model: Scaled) -> None:
    model.array[0] = 10.0


def entry_of_a_tensor(model: Scaled) -> None:
    model.plain[0] = 10.0


def attribute_of_the_class(model: Scaled) -> None:
    type(model).shared = 10.0


@pytest.mark.parametrize(
    "change",
    [
        *(attribute, underscored_attribute, entry_of_a_list, entry_of_a_dictionary, buffer_in_place, buffer_replaced),
        *(attribute_of_an_object, number_of_numpy, entry_of_an_array, entry_of_a_tensor, attribute_of_the_class),
    ],
    ids=lambda f: f.__name__,
)
def test_the_bounds_follow_a_number_that_the_models_forward_reads(change, monkeypatch):
    monkeypatch.setattr(Scaled, "shared", 1.0)  # and back after the test
    model = Scaled()
    run = private(model)
    before, state = run.optimizer.sensitivities()["linear.weight"], guards_of(model)
    change(model)
    if change not in (buffer_in_place, buffer_replaced):  # which rules read anew
        assert guards_of(model) != state  # seen by itself, before any value is compared
    assert run.optimizer.sensitivities()["linear.weight"] == pytest.approx(10 * before, rel=1e-3)


def test_the_bounds_follow_a_layer_that_takes_anothers_place():
    layers = [nn.Linear(6, 6, bias=False) for _ in range(2)]
    with torch.no_grad():
        layers[1].weight.mul_(100)
    model = nn.Sequential(dn.BallProjection(1.0), *layers, nn.Linear(6, 4))
    run = private(model)
    model[1] = model[2]  # which is in the model already
    held, present = run.optimizer.sensitivities(), dplip.sensitivity(model, run.loss, (6,))
    assert all(bound <= held[name] <= 1.03 * bound for name, bound in present.items())


class Repeated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ball, self.block, self.head = dn.BallProjection(0.01), dn.LogCompression(3.0), nn.Linear(6, 4)
        self.blocks = nn.Sequential(self.block)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ball(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def repeated() -> nn.Module:
    """The same of known layers alone, which are not run to see what they read."""
    block = dn.LogCompression(3.0)
    return nn.Sequential(dn.BallProjection(0.01), nn.Sequential(block, nn.Sequential()), nn.Linear(6, 4))


@pytest.mark.parametrize("made", [Repeated, repeated])
def test_the_bounds_follow_a_block_that_is_called_once_more(made):
    model = made()
    run = private(model)
    before = next(iter(run.optimizer.sensitivities().values()))
    (model.blocks if made is Repeated else model[1][1]).append(model.block if made is Repeated else model[1][0])
    held, present = run.optimizer.sensitivities(), dplip.sensitivity(model, run.loss, (6,))
    assert next(iter(present.values())) > 2 * before
    assert all(bound <= held[name] <= 1.03 * bound for name, bound in present.items())


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_model_is_traced_once_and_not_at_every_step(name, monkeypatch):
    model, shape = built(name)[:2]
    run = private(model, input_shape=shape, optimizer=torch.optim.SGD(model.parameters(), lr=0.01))
    traced = []
    monkeypatch.setattr("dplip.training.sources.Walk", lambda *arguments: traced.append(arguments))
    for _ in range(3):
        run.step(torch.rand(5, *shape), torch.zeros(5, dtype=torch.long))
    assert not traced and len(run.charged) == 3


def test_a_buffer_that_changes_between_the_gradient_and_the_step_is_seen():
    model = Scaled()
    run = private(model)
    run.backward(X, Y)
    with torch.no_grad():
        model.width.fill_(10.0)
    with pytest.raises(ConfigurationError, match="has changed since its gradient"):
        run.optimizer.step()


def test_a_sensitivity_that_grows_tenfold_is_said_once():
    model = plain()
    run = private(model)
    with torch.no_grad():
        model[3].weight.mul_(100)
    with pytest.warns(UserWarning, match="the sensitivity has grown from"):
        run.step(X, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.step(X, Y)


def test_the_bounds_follow_the_mode_of_the_model():
    model = dropping().train()
    run = private(model)
    training = run.optimizer.sensitivities()
    model.eval()
    evaluation = run.optimizer.sensitivities()
    assert training["1.weight"] == pytest.approx(2 * evaluation["1.weight"], rel=1e-3)
    model[3].train()
    assert run.optimizer.sensitivities()["1.weight"] == pytest.approx(training["1.weight"], rel=1e-3)


def test_bounds_carried_over_many_steps_stay_above_those_of_the_present_weights():
    """Norms are carried along by the triangle inequality, and only sometimes computed anew."""
    model = built("convolutional")[0]
    data = torch.randn(20, 2, 8, 8), torch.randint(0, 4, (20,))
    run = private(model, input_shape=(2, 8, 8), optimizer=torch.optim.SGD(model.parameters(), lr=0.002))
    for _ in range(12):
        present = dplip.sensitivity(model, run.loss, (2, 8, 8))
        held = run.optimizer.sensitivities()
        assert all(present[n] <= held[n] * (1 + 1e-9) for n in present)
        assert held.total <= 1.1 * present.total
        run.step(*data)


def test_replacing_one_example_counts_twice():
    model = built("plain")[0]
    one = private(model).optimizer.sensitivities()
    two = private(model, neighboring="replace_one").optimizer.sensitivities()
    assert dict(two) == pytest.approx({n: 2 * bound for n, bound in one.items()})


@pytest.mark.parametrize("batch", [1024, 8192])
def test_neighbouring_float32_sums_of_a_large_batch_lie_within_the_sensitivity(batch):
    """Every example is the worst one, so the sum is as large, and its rounding as coarse, as can be."""
    model = nn.Sequential(dn.BallProjection(1.0), nn.Linear(8, 3, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[50.0] * 8, [-50.0] * 8, [-100.0] * 8]))
    run = private(model, input_shape=(8,), batches=Handed(expected_batch_size=float(batch)))
    x, y = torch.full((batch, 8), 1.0), torch.ones(batch, dtype=torch.int64)

    def summed(rows: slice) -> Tensor:
        model.zero_grad()
        run.loss(model(x[rows]), y[rows]).backward()
        return model.get_parameter("1.weight").grad.double()

    for left_out in (1, 2, 3):
        moved = float((summed(slice(left_out - 1, batch)) - summed(slice(left_out, batch))).norm())
        assert moved <= run.optimizer.sensitivities().total
