"""A joint radius in private training: neighbouring sums, the noise, parts of a batch, and what is refused."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from helpers.enforced import CASES, Gated, items, private
from helpers.runs import TRAIN, X, Y, examples
from helpers.runs import private as run_of
from torch import Tensor, nn
from torch.utils.data import default_collate

import dplip
from dplip import audit
from dplip.errors import ConfigurationError
from dplip.losses import CrossEntropy
from dplip.nn import JointRadius, bound_gradients
from dplip.sensitivities import Sensitivities
from dplip.training.calls import Calls
from dplip.training.step_bounds import Rounding, StepBounds

LOSS = CrossEntropy()


def network() -> nn.Module:
    """A model that torch.fx traces."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))


def joint_model(radius: float = 0.1, model: nn.Module | None = None) -> nn.Module:
    return bound_gradients(network() if model is None else model, JointRadius(radius)).train()


def vector(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])


def summed(model: nn.Module, loss: Any, optimizer: Any, batch: list[Any]) -> Tensor:
    """The gradients of some items, as a step would take them."""
    calls = Calls(model)
    optimizer.zero_grad()
    call, targets = calls.of(default_collate(batch))
    loss(calls.select(model(*call[0], **call[1])), targets).backward()
    return vector(model)


# Not "noise inside": neighbours draw their noise in another order.
@pytest.mark.parametrize("name", [name for name in CASES if name != "noise inside"])
def test_one_example_moves_the_sums_by_the_joint_radius_at_most(name: str) -> None:
    case, most = CASES[name], 0.0
    torch.manual_seed(0)
    model, data = case.model(), items(case)
    model, optimizer, _ = private(model, case.loss, data, radius=JointRadius(0.02))
    for scale in (1.0, 3.0):
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(scale)
        whole = summed(model, case.loss, optimizer, data[:8])
        for i in (0, 3, 7):
            rest = summed(model, case.loss, optimizer, data[:i] + data[i + 1 : 8])
            most = max(most, float((whole - rest).norm()) / optimizer.sensitivities().total)
    # Of one parameter that is used twice the norms add up, so less than the radius may be used.
    assert (0.9 if name == "tied" else 0.99) <= most <= 1


@pytest.mark.parametrize("name", ["tied", "two heads"])
def test_neighbouring_steps_differ_within_the_joint_radius(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    data: Any = items(case, 24)
    model = joint_model(0.02, case.model())
    call, _ = Calls(model).of(default_collate(data[:1]))
    moved = audit.replay(model, case.loss, data, input_shape=dplip.Example.of_batch(*call), steps=3)
    assert not moved.violated and moved.differing >= 1
    assert 0.9 <= moved.joint <= 1


@pytest.mark.parametrize("neighboring, most", [("add_remove", None), ("add_remove", 3), ("replace_one", 3)])
def test_neighbouring_steps_of_a_model_with_a_trace_differ_within_the_joint_radius(neighboring, most) -> None:
    far = (torch.full((6,), 1e6), torch.tensor(0))
    options: Any = {"neighboring": neighboring, "max_physical_batch_size": most, "steps": 6, "example": far}
    moved = audit.replay(joint_model(), LOSS, examples(30), input_shape=(6,), **options)
    assert not moved.violated and moved.differing >= 2
    assert 0.99 <= moved.joint <= 1


@pytest.mark.parametrize("name", ["words", "noise inside", "two heads", "checkpoints", "tied"])
def test_a_model_of_any_code_trains_with_a_joint_radius(name: str) -> None:
    case = CASES[name]
    model = joint_model(1.0, case.model())
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer = dplip.DPLipTrainer(
        model,
        loss=case.loss,
        optimizer=torch.optim.Adam(model.parameters(), 0.01),
        train_dataset=items(case),  # type: ignore[arg-type]
        batch_size=10,
        max_physical_batch_size=6,
        epochs=1,
        noise_multiplier=1.0,
        autocast=torch.bfloat16 if name in ("words", "checkpoints") else None,
        progress=False,
    ).fit()
    assert trainer.get_epsilon() > 0 and trainer.optimizer.enforced
    assert all(not torch.equal(before[n], p) for n, p in model.named_parameters())


@pytest.mark.parametrize("neighboring, factor", [("add_remove", 1), ("replace_one", 2)])
def test_all_parameters_get_the_noise_of_the_joint_radius(neighboring: str, factor: int) -> None:
    run = run_of(joint_model(0.25), noise_multiplier=3.0, neighboring=neighboring)
    run.step(X, Y)
    declared = run.optimizer.sensitivities()
    assert declared.together == declared.total and 0.25 * factor <= declared.total <= 0.25 * factor * 1.001
    assert all(0.25 * factor <= bound <= declared.total for bound in declared.values())
    assert len(run.noise.draws) == 6
    assert all(3.0 * declared.total <= std <= 3.0 * declared.total * (1 + 1e-9) for _, std in run.noise.draws)
    assert str(declared).split()[-2:] == ["total", f"{declared.total:.6g}"]


def test_the_rounding_of_a_joint_bound_is_the_largest_of_all_parameters(monkeypatch: Any) -> None:
    run = run_of(joint_model())
    roundings = [Rounding(float(i), 0.0) for i in range(6)]
    monkeypatch.setattr(
        StepBounds, "_roundings", lambda self: dict(zip(self.source.summations, roundings, strict=True))
    )
    assert run.optimizer.sensitivities().total == pytest.approx(0.1 * 6, rel=1e-4)


def test_the_gradient_is_that_of_clipping_each_example_to_the_radius() -> None:
    stock = network()
    run = run_of(joint_model(model=copy.deepcopy(stock)))
    total = torch.zeros(sum(p.numel() for p in stock.parameters()), dtype=torch.float64)
    for x, y in zip(X, Y, strict=True):
        stock.zero_grad()
        LOSS(stock(x[None]), y[None]).backward()
        total += vector(stock) * min(1.0, 0.1 / float(vector(stock).norm()))
    run.backward(X, Y)
    torch.testing.assert_close(vector(run.model), total, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_add_what_the_whole_adds(parts: int) -> None:
    whole, split = run_of(joint_model(), noise_multiplier=0.0), run_of(joint_model(), noise_multiplier=0.0)
    whole.step(X, Y)
    for k, (x, y) in enumerate(zip(X.chunk(parts), Y.chunk(parts), strict=True)):
        split.batches.give(len(x), part=k + 1, complete=k + 1 == parts)
        split.optimizer.zero_grad()
        split.loss(split.model(x), y).backward()
        split.optimizer.step()
    assert len(split.charged) == 1
    torch.testing.assert_close(vector(split.model), vector(whole.model), rtol=1e-5, atol=1e-7)


def test_several_losses_of_one_pass_each_have_their_own_measure() -> None:
    """Two halves of a batch in one backward pass, whose nodes the engine may run in any order."""
    whole, halves = run_of(joint_model()), run_of(joint_model())
    whole.backward(X, Y)
    halves.batches.give(len(X))
    values = [halves.loss(halves.model(x), y) for x, y in zip(X.chunk(2), Y.chunk(2), strict=True)]
    (values[0] + values[1]).backward()
    torch.testing.assert_close(vector(halves.model), vector(whole.model), rtol=1e-5, atol=1e-7)
    halves.optimizer.step()
    assert len(halves.charged) == 1


def test_a_gradient_is_checked_in_the_second_pass_as_ever() -> None:
    run = run_of(joint_model())
    run.batches.give(len(X))
    penalty = sum((p.square().sum() for p in run.model.parameters()), start=torch.zeros(()))
    (run.loss(run.model(X), Y) + penalty).backward()
    with pytest.raises(ConfigurationError, match=r"step\(\): .*(\.grad|a gradient reached a weight)"):
        run.optimizer.step()
    assert not run.charged and not run.noise.draws


def mixed_layers() -> dict[str, Any]:
    def own(model: Any) -> None:
        model[2].radius = 0.5

    def another(model: Any) -> None:
        model[2].radius = JointRadius(0.5)

    def stock(model: Any) -> None:
        model.append(nn.Linear(4, 4))

    def automatic(model: Any) -> None:
        model.append(bound_gradients(nn.Linear(4, 4), "auto"))
        model[-1].radius = model[0].radius

    return {
        "a radius of its own": (own, r"JointRadius\(0\.1\), radii of their own.*one JointRadius"),
        "another joint radius": (another, r"JointRadius\(0\.1\), JointRadius\(0\.5\)"),
        "no radius": (stock, r"5\.bias: .*no layer bounds"),
        "an automatic one": (automatic, r"radius=JointRadius\(0\.1\).*'auto'"),
    }


@pytest.mark.parametrize("name", mixed_layers())
def test_a_model_that_is_joint_in_part_is_refused_in_words(name: str) -> None:
    change, words = mixed_layers()[name]
    model = joint_model()
    change(model)
    with pytest.raises(dplip.errors.DPLipError, match=words):
        run_of(model)


def test_a_joint_radius_that_changes_is_that_of_its_passes() -> None:
    model, optimizer, loader = private(Gated(), LOSS, items(CASES["a product"]), radius=JointRadius(0.1))
    drawn: list[float] = []
    optimizer.noise.add_ = lambda t, std: drawn.append(std)

    def give(*radii: float) -> None:
        next(iter(loader))
        loader.handed_out = 8
        optimizer.zero_grad()
        for radius in radii:
            new = JointRadius(radius)
            for layer in (model.a, model.b, model.head):
                layer.radius = new
            LOSS(model(torch.randn(8 // len(radii), 6)), torch.zeros(8 // len(radii), dtype=torch.long)).backward()

    give(0.7)
    optimizer.step()
    assert len(drawn) == 6 and all(0.7 <= std <= 0.71 for std in drawn)
    give(0.7, 0.3)
    with pytest.raises(ConfigurationError, match=r"JointRadius\(0\.3\), JointRadius\(0\.7\)"):
        optimizer.step()
    assert len(drawn) == 6


def test_the_sensitivity_of_a_model_and_an_audit_know_of_the_joint_radius() -> None:
    found = dplip.sensitivity(joint_model(), LOSS, (6,))
    assert found.total == pytest.approx(0.1, rel=1e-4) and set(found.values()) == {found.total}
    searched = audit.gradient_search(joint_model(), LOSS, (6,), starts=6, steps=4)
    assert not searched.violated and 0.99 * 0.1 <= searched.total <= 0.1 * (1 + 1e-5)
    assert dplip.sensitivity(joint_model(), LOSS, dplip.Example.of_shape((6,))).total == found.total


def test_bounds_say_how_far_all_parameters_are_bounded_together() -> None:
    alone, together = Sensitivities({"a": 3.0, "b": 4.0}), Sensitivities({"a": 1.0, "b": 1.0}, 1.0)
    assert alone.total == 5.0 and alone.together is None and together.total == 1.0
    assert repr(together) == "Sensitivities({'a': 1.0, 'b': 1.0}, together=1.0)"


def test_a_run_with_a_joint_radius_learns() -> None:
    model = joint_model(1.0)
    trainer = dplip.DPLipTrainer(
        model,
        loss=LOSS,
        optimizer=torch.optim.SGD(model.parameters(), 0.5),
        train_dataset=TRAIN,
        batch_size=20,
        epochs=20,
        target_epsilon=8.0,
        seed=0,
        progress=False,
    ).fit()
    assert trainer.evaluate(TRAIN)["accuracy"] > 0.9 and math.isfinite(trainer.get_epsilon())
