"""What a run says of each parameter: whether it moved, and whether that can be told from noise alone."""

import math
import re
import warnings

import pytest
import torch
from helpers.engines import epoch, parts
from helpers.models import plain
from helpers.runs import HELD_OUT, X, Y, examples, private
from helpers.trainers import trainer
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from dplip import PrivacyEngine
from dplip.nn import bound_gradients
from dplip.records import read_report, validate_report
from dplip.training.learned import TOLD, Learned, Learning, Movement


class Adapter(nn.Module):
    """A bounded model beside a layer whose gradient is always zero, as that of an adapter that was put in wrongly."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model, self.adapter = plain(), nn.Linear(4, 4)
        bound_gradients(self)

    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        return z + torch.relu(self.adapter(z) - 1e6)


def trained(model: nn.Module, steps: int = 30, **arguments) -> Learned:
    given = {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "seed": 0, **arguments}
    run = private(model, noise_multiplier=0.5, **given)
    for _ in range(steps):
        run.step(X, Y)
    return run.optimizer.learned()


def test_layers_that_learn_are_told_from_noise_and_give_no_warning():
    torch.manual_seed(0)
    found = trained(plain(), steps=200)
    assert all(m.moved and m.length > 1.3 and m.deviations > TOLD for m in found.layers.values())
    assert found.keys() == {"1.weight", "1.bias", "3.weight", "3.bias"} and found.layers.keys() == {"1", "3"}
    assert not found.never_moved and not found.noise_alone
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found.warn()


def test_a_layer_that_no_gradient_reaches_is_named_once_beside_those_that_learn():
    found = trained(Adapter(), steps=100)
    assert found.noise_alone == ["adapter"] and found["adapter.weight"].moved
    assert not found.layers["adapter"].told_from_noise and found.layers["model.1"].told_from_noise
    with pytest.warns(UserWarning, match=r"100 private steps, the movement of adapter cannot be told") as seen:
        found.warn()
    assert len(seen) == 1


def test_a_layer_whose_rate_is_zero_never_moved():
    model = plain()
    layers = [m for m in model if isinstance(m, nn.Linear)]
    groups = [{"params": layers[0].parameters(), "lr": 0.0}, {"params": layers[1].parameters(), "lr": 0.1}]
    found = trained(model, optimizer=torch.optim.SGD(groups, lr=0.1))
    assert found.never_moved == ["1.weight", "1.bias"]
    with pytest.warns(UserWarning, match=r"1\.weight, 1\.bias never moved.*learning rate"):
        found.warn()


def test_noise_alone_is_standard_normal_whatever_its_deviations_do():
    """The deviations follow the noise itself, as those of propagated bounds follow the weights."""
    generator = torch.Generator().manual_seed(0)
    found: list[tuple[int, float]] = []
    for size in (1, 3, 50, 1000):
        p = nn.Parameter(torch.zeros(size))
        for _ in range(400):
            learning, std = Learning(), 1.0
            for _ in range(5):
                p.grad = torch.randn(size, generator=generator) * std
                learning.record({"p": p}, {"p": std})
                std = 1 + 10 * float(p.grad.abs().max() > 1)
            found.append((size, learning.learned()["p"].deviations or 0.0))
    for size in (3, 50, 1000):  # a single entry's is a little skewed
        values = torch.tensor([z for entries, z in found if entries == size])
        assert abs(float(values.mean())) < 0.2 and 0.85 < float(values.std()) < 1.15
    assert sum(abs(z) >= TOLD for _, z in found) <= 12


def test_weights_that_are_drawn_back_to_where_they_were_are_told_from_a_walk():
    p, learning = nn.Parameter(torch.zeros(200)), Learning()
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        p.grad = p.detach() + torch.randn(200, generator=generator)
        learning.record({"p": p}, {"p": 1.0})
        with torch.no_grad():
            p.sub_(0.5 * p.grad)
        learning.compare({"p": p})
    movement = learning.learned()["p"]
    assert (movement.length or 1) < 0.5 and (movement.deviations or 0) < -TOLD and movement.told_from_noise


def test_without_noise_only_what_moved_is_said():
    model = plain()
    run = private(model, noise_multiplier=0.0, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    run.step(X, Y)
    found = run.optimizer.learned()
    assert set(found.values()) == {Movement(True, p.numel(), None) for p in model.parameters()}
    assert not found.noise_alone and not found.never_moved and "-" in str(found)


def test_nothing_is_said_before_the_first_step():
    found = private(plain()).optimizer.learned()
    assert found.steps == 0 and not found
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found.warn()


def test_a_batch_in_parts_is_one_step():
    model = plain()
    run = private(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    for part, end in ((1, 20), (2, 40)):
        run.batches.give(20, part, complete=part == 2)
        run.optimizer.zero_grad()
        run.loss(run.model(X[end - 20 : end]), Y[end - 20 : end]).backward()
        run.optimizer.step()
        assert run.optimizer.learned().steps == part - 1


def test_the_trainer_warns_at_the_end_and_reports(tmp_path):
    run = trainer(lr=0.0, output_dir=tmp_path)
    with pytest.warns(UserWarning, match="after 16 private steps, .* never moved") as seen:
        run.fit()
    assert len(seen) == 1 and seen[0].filename == __file__
    report = read_report(tmp_path)
    validate_report(report)
    assert report["learned"]["steps"] == 16
    named = {name for name, p in run.model.named_parameters() if p.requires_grad}
    assert report["learned"]["parameters"].keys() == named
    entries = report["learned"]["parameters"].values()
    assert all(not entry["moved"] and math.isfinite(entry["deviations"]) for entry in entries)


def test_the_engines_optimizer_tells_it_when_it_is_asked():
    given = parts(count=400, batch_size=100)
    model, optimizer, loader = PrivacyEngine().make_private(**given, noise_multiplier=0.3, seed=0)
    for _ in range(15):
        epoch(model, optimizer, loader, given["criterion"])
    found = optimizer.learned()
    assert found.steps == 60 and not found.never_moved
    assert re.search(r"parameter +moved +length +deviations", str(found))


def test_accuracy_stands_beside_that_of_the_most_frequent_class():
    x, _ = examples(40).tensors
    one_sided = TensorDataset(x, torch.tensor([2] * 30 + [0] * 10))
    run = trainer(epochs=1)
    assert run.evaluate(one_sided)["majority"] == 0.75
    assert run.report()["utility"]["majority"] == run.evaluate(HELD_OUT)["majority"] < 0.5


def test_radii_that_are_never_or_always_reached_are_named():
    movements = {"a.weight": Movement(True, 10, 9.0)}
    with pytest.warns(UserWarning, match=r"of a never reach.*of b are all scaled"):
        Learned(movements, 5, {"a": 1.0, "b": 1.0}, {"a": 0.999, "b": 0.0}).warn()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Learned(movements, 5, {"a": 1.0}, {"a": 0.5}).warn()
