"""DPLipTrainer: how a model is trained and evaluated."""

import math

import pytest
import torch
from helpers.epsilons import DELTA
from helpers.models import Flattening, orthogonal
from helpers.runs import HELD_OUT, TRAIN
from helpers.trainers import plain_seeded, trainer, weights
from torch import nn
from torch.utils.data import TensorDataset

import dplip
import dplip.nn as dn
from dplip import DPLipTrainer
from dplip.data import load
from dplip.errors import ConfigurationError
from dplip.losses import BinaryCrossEntropy, Huber
from dplip.models import preset
from dplip.records import validate_report


@pytest.mark.parametrize("examples_left", [1, 5])
def test_tiny_data_with_empty_batches_are_trained_on_by_a_model_that_reshapes_by_the_batch(examples_left):
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(examples_left, 2, 4), torch.zeros(examples_left, dtype=torch.int64))
    run = trainer(
        *(Flattening(),),
        train_dataset=data,
        eval_dataset=None,
        batch_size=1,
        public_size=50,
        epochs=1,
        noise_multiplier=1.0,
        seed=0,
    ).fit()
    assert run.accountant.history == [(1.0, 0.02, 50)]
    assert all(w.isfinite().all() for w in weights(run))


def test_a_scheduler_is_stepped_once_per_private_step():
    model = orthogonal()
    inner = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(inner, 1, 0.5)
    trainer(model, optimizer=inner, scheduler=scheduler, max_physical_batch_size=4).fit()
    assert inner.param_groups[0]["lr"] == pytest.approx(0.5**16)


def test_the_trainer_makes_a_scheduler_for_the_steps_that_it_takes():
    run = trainer(scheduler=torch.optim.lr_scheduler.CosineAnnealingLR).fit()
    assert run.scheduler.T_max == run.steps == 16
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    "made", [lambda *_: "no scheduler", lambda *_: torch.optim.lr_scheduler.ConstantLR(sgd(orthogonal()))]
)
def test_a_scheduler_is_checked_however_it_comes(made):
    with pytest.raises(ConfigurationError, match="scheduler"):
        trainer(scheduler=made)
    run = trainer()
    with pytest.raises(ConfigurationError, match="scheduler"):
        run.scheduler = made()
    assert run.scheduler is None


def sgd(model: torch.nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize("name", ["autocast", "budget", "epochs"])
def test_what_a_plan_rests_on_stays_what_it_was(name):
    run = trainer()
    with pytest.raises(ConfigurationError, match=name):
        setattr(run, name, getattr(run, name))


def test_the_average_of_the_weights_is_that_of_every_step_and_costs_nothing():
    plain_run = trainer(plain_seeded(), seed=1)
    seen: list[list[torch.Tensor]] = []
    plain_run.optimizer.register_step_post_hook(lambda *_: seen.append(weights(plain_run)))
    plain_run.fit()
    averaged = trainer(plain_seeded(), seed=1, ema_decay=0.7).fit()
    expected = seen[0]
    for present in seen[1:]:
        expected = [0.7 * a + 0.3 * b for a, b in zip(expected, present, strict=True)]
    for a, b in zip(expected, weights(averaged), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert averaged.get_epsilon() == plain_run.get_epsilon()


def test_an_averaged_model_obeys_its_constraints():
    run = trainer(ema_decay=0.9, lr=1.0).fit()
    assert dplip.lipschitz(run.model.eval(), (6,)) < 1.001


def test_the_model_comes_out_of_evaluation_in_the_mode_it_went_in():
    run = trainer()
    run.model.train()
    run.evaluate()
    run.certified_accuracy([0.1])
    assert all(m.training for m in run.model.modules())


def test_a_regression_is_trained_with_huber_and_evaluated_by_its_error():
    torch.manual_seed(0)
    x = torch.randn(400, 6)
    y = x @ torch.randn(6, 1) / 3
    data = TensorDataset(x / 2, y)
    model = nn.Sequential(dn.BallProjection(2.0), nn.Linear(6, 1))
    run = trainer(
        model, loss=Huber(), train_dataset=data, eval_dataset=data, batch_size=200, epochs=30, target_epsilon=8.0
    )
    untrained = run.evaluate()["mse"]
    run.fit()
    found = run.evaluate()
    assert found.keys() == {"mse", "loss"}
    assert found["mse"] < 0.5 * untrained
    report = run.report()
    validate_report(report)
    assert report["utility"]["mse"] == found["mse"] and report["certified"]["radii"] == []


def test_a_binary_classifier_has_one_output_and_is_certified_by_its_sign():
    torch.manual_seed(0)
    x = torch.randn(600, 6)
    data = TensorDataset(x, (x[:, 0] > 0).long())
    run = trainer(
        orthogonal(classes=1),
        loss=BinaryCrossEntropy(8.0, normalize=True),
        train_dataset=data,
        eval_dataset=data,
        batch_size=200,
        epochs=20,
        target_epsilon=8.0,
    ).fit()
    assert run.evaluate()["accuracy"] > 0.8
    clean, certified = run.certified_accuracy([0.0, 0.2])
    assert clean == run.evaluate()["accuracy"] > certified > 0.2


def test_evaluation_gives_mean_loss_and_accuracy_of_the_given_data():
    run = trainer().fit()
    x, y = HELD_OUT.tensors
    run.model.eval()
    scores = run.model(x).detach()
    found = run.evaluate()
    assert found["accuracy"] == pytest.approx(float((scores.argmax(1) == y).float().mean()))
    assert found["loss"] == pytest.approx(float(run.loss(scores, y)) / len(y), rel=1e-5)
    assert run.evaluate(TRAIN) != found
    assert run.accountant.num_steps == 16


def test_certified_accuracy_falls_with_the_radius_from_the_accuracy():
    run = trainer(epochs=10).fit()
    for norm in (1, 2, math.inf):
        found = run.certified_accuracy([0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 100.0], norm=norm)
        assert found == sorted(found, reverse=True)
        assert found[0] == run.evaluate()["accuracy"] and found[-1] == 0


def test_without_held_out_data_there_is_nothing_to_evaluate_on():
    run = trainer(eval_dataset=None, epochs=1).fit()
    for ask in (run.evaluate, run.certified_accuracy):
        with pytest.raises(ConfigurationError, match="eval_dataset"):
            ask()
    assert run.evaluate(HELD_OUT)["accuracy"] >= 0
    report = run.report()
    validate_report(report)
    assert report["utility"]["accuracy"] is None


def test_digits_are_learned_within_epsilon_8_and_the_budget_is_spent():
    data, recipe = load("digits"), preset("digits")
    torch.manual_seed(0)
    model = recipe.model(data.input_shape, data.num_classes)
    run = DPLipTrainer(
        model,
        loss=recipe.loss(),
        optimizer=recipe.optimizer(model),
        train_dataset=data.train,
        eval_dataset=data.test,
        batch_size=recipe.batch_size,  # type: ignore[arg-type]
        epochs=recipe.epochs,
        target_epsilon=8.0,
        target_delta=DELTA,
        progress=False,
    ).fit()
    assert 7.9 < run.get_epsilon() <= 8.0
    assert run.evaluate()["accuracy"] > 0.75
    clean, *certified = run.certified_accuracy([0.0, 36 / 255, 72 / 255])
    assert clean > certified[0] > certified[1] > 0.3
