"""Radii that follow the gradients: what is released, what is charged for it, and what is refused."""

import copy
import math
from typing import Any

import pytest
import torch
from helpers.runs import HELD_OUT, TRAIN, Handed, Run, X, Y, interrupted, private
from helpers.trainers import trainer
from torch import Tensor, nn

from dplip.audit import replay
from dplip.errors import ConfigurationError
from dplip.losses import CrossEntropy
from dplip.nn import bound_gradients
from dplip.noise.discrete import secure_noise
from dplip.propagation import Walk
from dplip.sensitivities import enforced_sensitivity
from dplip.training import sources
from dplip.training.radii import LEAST, NOISY, RATE, TARGET, Radii, change_units


def adaptive(width: int = 8) -> Any:
    torch.manual_seed(0)
    return bound_gradients(nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 4)), radius="auto")


def made(model: Any = None, lr: float = 0.1, **arguments: Any) -> Run:
    model = adaptive() if model is None else model
    given = {"optimizer": torch.optim.SGD(model.parameters(), lr=lr), "batches": Handed(40.0), "seed": 0, **arguments}
    return private(model, **given)


def radii(model: Any) -> list[float]:
    return [layer.radius for layer in model if hasattr(layer, "radius")]


# What is released, and what it costs


def test_each_slack_gets_the_noise_of_its_weight_and_the_event_is_the_same():
    run = made(noise_multiplier=0.7)
    before = run.optimizer.sensitivities()
    run.step(X, Y)
    sizes, stds = zip(*run.noise.draws, strict=True)
    assert sizes == (48, 8, 32, 4, 1, 1)
    assert stds[4:] == (stds[0], stds[2])
    # A weight and its slack are one vector within the radius, so there is one term for both.
    assert sum((b / s) ** 2 for b, s in zip(before.values(), stds, strict=False)) == pytest.approx(0.7**-2)
    assert run.charged == [run.optimizer.event]


@pytest.mark.parametrize("neighboring, parts", [("add_remove", None), ("replace_one", 7)])
def test_neighbouring_steps_differ_within_the_sensitivity_with_the_slack(neighboring, parts):
    for scale in (1e-3, 100.0):
        far = (scale * torch.ones(6), torch.tensor(1))
        arguments = {"neighboring": neighboring, "max_physical_batch_size": parts, "steps": 5}
        found = replay(adaptive(), CrossEntropy(), TRAIN, input_shape=(6,), example=far, **arguments)
        assert not found.violated and max(found.largest.values()) > 0.98  # an outer product has its exact norm


def test_a_radius_is_charged_even_where_propagated_norms_are_smaller():
    """A gradient far below the radius has a slack of nearly the radius."""
    model = adaptive()
    model.insert(0, nn.Tanh())
    for layer in (model[1], model[3]):
        layer.radius = 1000.0
    run = made(model)
    assert all(1000.0 <= bound <= 1010.0 for bound in run.optimizer.sensitivities().values())


def test_parts_of_a_batch_release_what_the_whole_does():
    whole, parted = made(noise_multiplier=0.0), made(noise_multiplier=0.0)
    whole.step(X, Y)
    for part, rows in ((1, slice(0, 13)), (2, slice(13, 40))):
        parted.batches.give(len(X[rows]), part, complete=part == 2)
        parted.optimizer.zero_grad()
        parted.loss(parted.model(X[rows]), Y[rows]).backward()
        parted.optimizer.step()
    assert radii(parted.model) == pytest.approx(radii(whole.model), rel=1e-9) and radii(whole.model) != [1.0, 1.0]


def test_an_empty_batch_counts_no_slack():
    run = made(noise_multiplier=0.0)
    run.batches.give(0)
    run.loss(run.model(X[:1]), Y[:1]).backward()
    run.optimizer.step()
    assert radii(run.model) == pytest.approx([math.exp(RATE * TARGET)] * 2)


def test_gradients_that_are_cleared_leave_no_slack():
    model = adaptive()
    run = made(model, noise_multiplier=0.0)
    run.loss(model(X), Y).backward()
    run.step(X, Y)
    other = made(noise_multiplier=0.0)
    other.step(X, Y)
    assert radii(run.model) == radii(other.model)
    assert all(layer.slack.grad is None for layer in (model[0], model[2]))


# The noise is for the radius of the backward pass


def test_bounds_are_those_of_the_present_radii_and_nothing_is_traced_again(monkeypatch):
    traces: list[Walk] = []

    class Counted(Walk):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            traces.append(self)

    monkeypatch.setattr(sources, "Walk", Counted)
    run = made()
    for _ in range(8):
        declared = run.optimizer.sensitivities()
        fresh = enforced_sensitivity(Walk(run.model, (6,)))
        for name, bound in declared.items():
            assert fresh[name] <= bound <= fresh[name] * (1 + 1e-2)
        run.step(X, Y)
    assert len(traces) == 1 and len(set(radii(run.model))) == 2


def test_layers_that_share_a_weight_are_bounded_by_the_sum_of_their_radii():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))

    torch.manual_seed(0)
    model: Any = bound_gradients(Shared(), radius="auto")
    run = made(model)
    for _ in range(3):
        run.step(X, Y)
        both = model.first.radius + model.second.radius
        assert model.first.radius != model.second.radius
        assert both <= run.optimizer.sensitivities()["first.weight"] <= both * (1 + 1e-2)
    assert [size for size, _ in run.noise.draws[-3:]] == [1, 1, 1]


def test_a_radius_that_changes_between_backward_and_step_is_refused():
    model = adaptive()
    run = made(model)
    run.backward(X, Y)
    model[0].radius = 0.01
    with pytest.raises(ConfigurationError, match="has changed since"):
        run.optimizer.step()
    assert not run.charged


@pytest.mark.parametrize("when", ["hook", "grad"])
def test_a_slack_that_is_changed_on_its_way_is_refused(when):
    run = made()
    model: Any = run.model
    slack: Tensor = model[0].slack
    if when == "hook":
        slack.register_hook(lambda gradient: 2 * gradient)
    run.backward(X, Y)
    if when == "grad":
        assert slack.grad is not None
        slack.grad.mul_(2)
    with pytest.raises(ConfigurationError, match=r"backward|\.grad"):
        run.optimizer.step()
    assert not run.charged


def test_secure_noise_counts_the_slacks_among_its_parameters():
    assert secure_noise(1.0, adaptive())._parameters == 6
    assert secure_noise(1.0, nn.Linear(2, 2))._parameters == 2


# The controller


@pytest.mark.parametrize("first", [1e-4, 1.0, 1e4])
def test_a_radius_settles_where_the_share_is_the_target_from_wherever_it_begins(first):
    model = adaptive()
    run = made(model, lr=0.0, noise_multiplier=0.1)
    for layer in (model[0], model[2]):
        layer.radius = first
    for _ in range(150):
        run.step(X, Y)
    shares = run.optimizer.radii.shares
    assert shares.keys() == {"0", "2"}
    assert all(abs(share - TARGET) < 0.1 for share in shares.values())


def test_radii_move_slowly_where_a_share_is_mostly_noise():
    model = adaptive()
    followed = Radii(model, 10.0)
    noisy = {"0": torch.tensor(0.0), "2": torch.tensor(0.0)}
    calm = followed.next(noisy, {"0.weight": 0.1, "2.weight": 0.1}, {"0.weight": 1, "2.weight": 1})
    loud = followed.next(noisy, {"0.weight": 100.0, "2.weight": 1.0}, {"0.weight": 1, "2.weight": 1})
    assert math.log(calm["0"]) == pytest.approx(RATE * TARGET)
    assert math.log(loud["0"]) == pytest.approx(RATE * TARGET * NOISY / 10)
    model[0].radius = LEAST
    full = {name: torch.tensor(1e9) for name in noisy}
    assert followed.next(full, {"0.weight": 0.0, "2.weight": 0.0}, {"0.weight": 1, "2.weight": 1})["0"] == LEAST


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.Adamax, torch.optim.SGD])
def test_moments_are_kept_in_units_of_the_noise(kind):
    """Adam moves by noise alone as far after its deviation has changed a thousandfold as before; SGD keeps no units."""
    p = nn.Parameter(torch.zeros(2000))
    optimizer = kind([p], lr=0.1, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
    moves, generator = [], torch.Generator().manual_seed(0)
    for step in range(60):
        deviation, before = (1.0 if step < 30 else 1e-3), p.detach().clone()
        p.grad = deviation * torch.randn(2000, generator=generator)
        change_units(optimizer, {"p": p}, {"p": deviation})
        optimizer.step()
        moves.append(float((p.detach() - before).norm()))
    assert (
        moves[31] == pytest.approx(moves[29], rel=0.2) if kind is not torch.optim.SGD else moves[59] < 0.1 * moves[29]
    )


def test_the_units_of_moments_are_kept_with_them():
    """An optimizer that goes on from a saved state moves as the one that was saved, though the noise has changed."""
    p = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.Adam([p])
    p.grad = torch.ones(3)
    change_units(optimizer, {"p": p}, {"p": 1.0})
    optimizer.step()
    q = nn.Parameter(p.detach().clone())
    other = torch.optim.Adam([q])
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, weight in ((optimizer, p), (other, q)):
        weight.grad = torch.full((3,), 0.1)
        change_units(one, {"p": weight}, {"p": 0.1})
        one.step()
    assert torch.equal(p, q) and torch.equal(optimizer.state[p]["exp_avg"], other.state[q]["exp_avg"])


def test_a_deviation_that_was_or_is_0_changes_no_moments():
    p = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.Adam([p])
    for deviation in (0.0, 2.0, 0.0):
        p.grad = torch.ones(3)
        change_units(optimizer, {"p": p}, {"p": deviation})
        optimizer.step()
    assert torch.allclose(optimizer.state[p]["exp_avg"], torch.full((3,), 1 - 0.9**3))


def test_a_model_of_automatic_radii_learns_from_any_first_radius():
    accuracies = []
    for seed in range(4):
        model = adaptive()
        for layer in (model[0], model[2]):
            layer.radius = 1e-3
        run = trainer(model, lr=0.3, loss=CrossEntropy(), epochs=40, target_epsilon=8.0, seed=seed).fit()
        accuracies.append(run.evaluate(HELD_OUT)["accuracy"])
        assert run.get_epsilon() <= 8.0
    assert sum(accuracies) / 4 > 0.9


# Radii are part of a run's state


def test_radii_are_in_the_state_of_the_optimizer_and_come_back():
    run = made()
    for _ in range(5):
        run.step(X, Y)
    state = run.optimizer.state_dict()
    again = made()
    again.optimizer.load_state_dict(state)
    assert radii(again.model) == radii(run.model) != [1.0, 1.0]
    assert again.optimizer.sensitivities() == pytest.approx(dict(run.optimizer.sensitivities()), rel=1e-12)


def test_a_resumed_run_goes_on_with_its_radii(tmp_path):
    first = trainer(adaptive(), output_dir=tmp_path, checkpoint_every=3)
    kept: list[list[float]] = []
    write = first._run.save

    def watched() -> None:
        kept.append(radii(first.model))
        write()

    first._run.save = watched
    interrupted(first, 7)
    second = trainer(adaptive(), output_dir=tmp_path, checkpoint_every=3)
    second._run.open(resume=True)
    second._run.close()
    assert radii(second.model) == kept[-1] != [1.0, 1.0]
    third: Any = trainer(adaptive(), output_dir=tmp_path, checkpoint_every=3).fit(resume=True)
    assert third.accountant.num_steps == 16
    assert third.report()["learned"]["radii"] == {"0": third.model[0].radius, "2": third.model[2].radius}
