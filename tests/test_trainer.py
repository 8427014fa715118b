"""DPLipTrainer: a plan before anything is spent, exactly the planned steps, and a report that says what happened."""

import json
import math

import pytest
import torch
from small_models import Flattening, Pooled, orthogonal, plain
from small_runs import examples, interrupted
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import dplip
import dplip.nn as dn
from dplip import DPLipTrainer
from dplip.accounting import Budget, GaussianEvent
from dplip.data import load
from dplip.errors import BudgetExceededError, ConfigurationError, LedgerError, UnboundedInputError
from dplip.losses import BinaryCrossEntropy, CrossEntropy, Huber
from dplip.models import preset
from dplip.records import Ledger, read_report, validate_report
from dplip.records.report import FIELDS

torch.set_num_threads(1)

DELTA = 1e-5
TRAIN, HELD_OUT = examples(80), examples(40, seed=1)


def trainer(model: nn.Module | None = None, lr: float = 0.2, **arguments) -> DPLipTrainer:
    """Four epochs of four steps on points in six dimensions."""
    if model is None:
        torch.manual_seed(0)
        model = orthogonal()
    given = {
        "loss": CrossEntropy(8.0, normalize=True),
        "optimizer": torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9),
        "train_dataset": TRAIN,
        "eval_dataset": HELD_OUT,
        "batch_size": 20,
        "epochs": 4,
        "target_epsilon": 4.0,
        "target_delta": DELTA,
        "progress": False,
        **arguments,
    }
    if given.get("noise_multiplier") is not None:
        given["target_epsilon"] = None
    return DPLipTrainer(model, **given)


def weights(run: DPLipTrainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in run.model.parameters()]


# ------------------------------------------------------------------------------------------------ what cannot be run


@pytest.mark.parametrize(
    "arguments, named",
    [
        ({"target_epsilon": None}, "one of the two"),
        ({"target_epsilon": 0.0}, "target_epsilon=0"),
        ({"target_epsilon": -3.0}, "target_epsilon=-3"),
        ({"target_epsilon": math.nan}, "target_epsilon=nan"),
        ({"noise_multiplier": -1.0}, "noise_multiplier=-1"),
        ({"noise_multiplier": math.nan}, "noise_multiplier=nan"),
        ({"noise_multiplier": math.inf}, "noise_multiplier=inf"),
        ({"target_delta": 0.0}, "delta=0"),
        ({"target_delta": 1.0}, "delta=1"),
        ({"target_delta": math.nan}, "delta=nan"),
        ({"epochs": 0}, "epochs=0"),
        ({"epochs": 2.5}, "epochs=2.5"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 81}, "batch_size=81"),
        ({"max_physical_batch_size": 0}, "max_physical_batch_size=0"),
        ({"neighboring": "both"}, "neighboring='both'"),
        ({"accountant": "gdp"}, "accountant='gdp'"),
        ({"ema_decay": 1.0}, "ema_decay=1"),
        ({"seed": -1}, "seed=-1"),
        ({"public_size": 0}, "public_size=0"),
        ({"loss": nn.CrossEntropyLoss()}, "CrossEntropyLoss"),
        ({"norm": 3}, "norm=3"),
        ({"norm": "inf"}, "norm='inf'"),
        ({"scheduler": "cosine"}, "scheduler='cosine'"),
        ({"optimizer": "sgd"}, "optimizer='sgd'"),
        ({"train_dataset": DataLoader(TRAIN)}, "loader.dataset"),
        ({"eval_dataset": DataLoader(HELD_OUT)}, "loader.dataset"),
    ],
    ids=lambda v: "-".join(f"{k}={w}" for k, w in v.items())[:40] if isinstance(v, dict) else None,
)
def test_an_argument_that_no_sound_run_can_be_made_from_is_refused_by_its_name(arguments, named):
    with pytest.raises(ConfigurationError, match=named):
        trainer(**arguments)


def test_a_scheduler_of_another_optimizer_or_of_a_metric_is_refused():
    model = orthogonal()
    own, other = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    with pytest.raises(ConfigurationError, match="another optimizer"):
        trainer(model, optimizer=own, scheduler=torch.optim.lr_scheduler.StepLR(other, 3))
    with pytest.raises(ConfigurationError, match="no metric"):
        trainer(model, optimizer=own, scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau(own))


@pytest.mark.parametrize("which", ["train_dataset", "eval_dataset"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.uint8, torch.int64, torch.float16])
def test_examples_of_another_type_than_the_weights_are_refused(which, dtype):
    x, y = examples(80).tensors
    with pytest.raises(ConfigurationError, match=rf"{which}.*{dtype}"):
        trainer(**{which: TensorDataset(x.to(dtype), y)})


def test_examples_of_several_shapes_are_refused():
    class Growing(Pairs):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return (torch.cat([x, x]) if index == 5 else x), y

    with pytest.raises(ConfigurationError, match=r"train_dataset\[5\] has shape \(12,\)"):
        trainer(train_dataset=Growing())


def test_a_delta_that_protects_no_one_is_warned_of():
    with pytest.warns(UserWarning, match="well below 1 / examples"):
        trainer(target_delta=1 / 80)


def test_a_word_that_fit_does_not_know_is_refused():
    with pytest.raises(TypeError, match="resmue"):
        trainer().fit(resmue=True)


def test_a_target_and_a_noise_multiplier_together_are_refused():
    model = orthogonal()
    with pytest.raises(ConfigurationError, match="one of the two"):
        DPLipTrainer(
            model,
            loss=CrossEntropy(),
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            train_dataset=TRAIN,
            batch_size=20,
            target_epsilon=3.0,
            noise_multiplier=1.0,
        )


def inputs_and_labels(x=None, y=None) -> TensorDataset:
    return TensorDataset(TRAIN.tensors[0] if x is None else x, TRAIN.tensors[1] if y is None else y)


@pytest.mark.parametrize("which", ["train_dataset", "eval_dataset"])
@pytest.mark.parametrize(
    "labels, named",
    [
        (torch.full((80,), 4), "label 0"),
        (torch.full((80,), -1), "label 0"),
        (torch.full((80,), 0.5), "label 0"),
        (torch.zeros(80, 4, dtype=torch.int64), "label 0"),
        (torch.full((80,), math.nan), "label 0"),
    ],
    ids=["too large", "negative", "fraction", "one-hot", "nan"],
)
def test_labels_that_are_no_classes_of_the_model_are_refused_before_training(which, labels, named):
    with pytest.raises(ConfigurationError, match=f"{which} {named}"):
        trainer(**{which: inputs_and_labels(y=labels)})


def test_one_wrong_label_among_many_is_found():
    labels = TRAIN.tensors[1].clone()
    labels[77] = 9
    with pytest.raises(ConfigurationError, match="label 77=9"):
        trainer(train_dataset=inputs_and_labels(y=labels))


class Pairs(Dataset):
    """The training data, item by item."""

    def __init__(self, count: int = 80) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        return TRAIN[index][0], int(TRAIN[index][1])


def test_empty_data_are_refused():
    for data in (Pairs(0), TensorDataset(torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64))):
        with pytest.raises(ConfigurationError, match="train_dataset"):
            trainer(train_dataset=data)


def test_data_that_give_item_by_item_are_trained_on():
    run = trainer(train_dataset=Pairs()).fit()
    assert run.accountant.num_steps == 16


def test_inputs_that_are_not_numbers_are_refused_where_nothing_neutralises_them():
    x = TRAIN.tensors[0].clone()
    x[5, 0] = math.nan
    clamped = nn.Sequential(dn.Clamp(-1.0, 1.0), nn.Linear(6, 4))
    with pytest.raises(ConfigurationError, match="train_dataset input 5"):
        trainer(clamped, train_dataset=inputs_and_labels(x))


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e38])
def test_inputs_that_are_not_numbers_are_neutralised_by_the_ball(value):
    x = TRAIN.tensors[0].clone()
    x[::3, 0] = value
    run = trainer(train_dataset=inputs_and_labels(x)).fit()
    assert all(w.isfinite().all() for w in weights(run))
    assert 0 <= run.evaluate()["accuracy"] <= 1


def test_a_model_whose_input_nothing_bounds_is_refused():
    with pytest.raises(UnboundedInputError, match="BallProjection"):
        trainer(nn.Sequential(nn.Linear(6, 4)))


@pytest.mark.parametrize(
    "targets, named",
    [
        (torch.full((80, 4), math.nan), "target"),
        (torch.randn(80, 3), "equal shapes"),
    ],
)
def test_targets_that_a_regression_cannot_use_are_refused_before_training(targets, named):
    with pytest.raises(ConfigurationError, match=named):
        trainer(loss=Huber(), train_dataset=inputs_and_labels(y=targets), eval_dataset=None)


def test_a_loss_that_does_not_fit_the_outputs_is_refused_before_training():
    binary = inputs_and_labels(y=torch.zeros(80, dtype=torch.int64))
    with pytest.raises(ConfigurationError, match="one score"):
        trainer(loss=BinaryCrossEntropy(), train_dataset=binary, eval_dataset=None)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int64])
def test_labels_of_any_whole_type_are_trained_on(dtype):
    run = trainer(train_dataset=inputs_and_labels(y=TRAIN.tensors[1].to(dtype)), epochs=1).fit()
    assert run.accountant.num_steps == 4


def test_held_out_data_of_another_shape_do_not_change_the_bounds_of_training():
    """A convolution takes both, and its gradient bounds depend on the size: those of training count."""
    train = TensorDataset(torch.randn(80, 1, 16, 16), torch.randint(0, 3, (80,)))
    other = TensorDataset(torch.randn(10, 1, 4, 4), torch.randint(0, 3, (10,)))
    torch.manual_seed(0)
    model = Pooled()
    alone = trainer(model, train_dataset=train, eval_dataset=None).plan().sensitivities
    try:
        beside = trainer(model, train_dataset=train, eval_dataset=other).plan().sensitivities
    except ConfigurationError as refusal:
        assert "shape" in str(refusal)
    else:
        assert dict(beside) == pytest.approx(dict(alone), rel=1e-3)


# ----------------------------------------------------------------------------------------------------- plan and spend


def test_the_plan_is_known_before_anything_is_spent_and_is_what_fit_spends():
    run = trainer()
    before = weights(run)
    plan = run.plan()
    assert run.accountant.num_steps == 0 and run.get_epsilon() == 0
    assert all(torch.equal(a, b) for a, b in zip(before, weights(run), strict=True))
    assert (plan.sample_rate, plan.steps, plan.expected_batch_size, plan.public_size) == (0.25, 16, 20.0, 80)
    assert (plan.delta, plan.accountant, plan.neighboring) == (DELTA, "rdp", "add_remove")
    assert plan.event == GaussianEvent(plan.noise_multiplier, 0.25)
    assert 3.95 < plan.epsilon <= 4.0
    declared = dplip.sensitivity(run.model.train(), run.loss, (6,))
    assert all(1 < bound / declared[name] < 1.001 for name, bound in plan.sensitivities.items())  # of a sum in float32
    run.fit()
    assert run.accountant.history == [(plan.noise_multiplier, 0.25, 16)]
    assert run.get_epsilon() == run.get_epsilon(delta=DELTA) == plan.epsilon
    assert run.get_epsilon(delta=1e-3) < plan.epsilon


def test_the_plan_prints_every_number():
    plan = trainer().plan()
    text = str(plan)
    for value in ("4 at delta 1e-05", f"{plan.noise_multiplier:.4f}", "16", "0.25", "rdp", "add_remove", "1.weight"):
        assert value.removeprefix("4 at") in text
    assert f"{plan.epsilon:.4f}" in text


def test_fit_returns_the_trainer():
    run = trainer(epochs=1)
    assert run.fit() is run


def test_a_second_fit_is_refused_and_neither_spends_nor_moves_anything():
    run = trainer().fit()
    spent, held = run.get_epsilon(), weights(run)
    with pytest.raises(BudgetExceededError):
        run.fit()
    assert run.get_epsilon() == spent and run.accountant.num_steps == 16
    assert all(torch.equal(a, b) for a, b in zip(held, weights(run), strict=True))


@pytest.mark.parametrize("budget", [math.inf, 100.0])
def test_a_second_fit_takes_no_further_step_even_where_the_budget_has_room(budget):
    """Without a target, or with steps so cheap that one more stays within it, the plan is the limit."""
    run = trainer(noise_multiplier=1.0)
    run.budget = Budget(budget, DELTA)
    run.fit()
    spent = run.get_epsilon()
    with pytest.raises(BudgetExceededError):
        run.fit()
    assert run.accountant.num_steps == run.steps
    assert run.get_epsilon() == spent


def test_an_interrupted_fit_goes_on_where_it_stopped():
    run = interrupted(trainer(), 6)
    assert run.accountant.num_steps == 6
    run.fit()
    assert run.accountant.num_steps == 16
    assert run.get_epsilon() <= 4.0


def test_replace_one_needs_more_noise_for_one_epsilon_and_less_than_twice_as_much():
    one, two = trainer().plan(), trainer(neighboring="replace_one").plan()
    assert one.epsilon == pytest.approx(two.epsilon, rel=0.01)
    assert 0.5 * one.noise_multiplier < two.noise_multiplier < 0.95 * one.noise_multiplier  # of twice the sensitivity
    assert two.sensitivities.total == pytest.approx(2 * one.sensitivities.total)


@pytest.mark.parametrize("count", [79, 80, 81])
def test_a_neighbour_of_the_data_is_trained_with_the_same_constants(count):
    run = trainer(train_dataset=examples(count), public_size=80)
    reference = trainer(public_size=80)
    for name in ("noise_multiplier", "sample_rate", "steps", "expected_batch_size", "public_size", "epsilon"):
        assert getattr(run.plan(), name) == getattr(reference.plan(), name)
    assert dict(run.plan().sensitivities) == dict(reference.plan().sensitivities)
    assert run.optimizer.expected_batch_size == 20.0
    assert run.report()["privacy"]["public_size"] == 80


def test_physical_batches_give_the_run_of_the_whole_batches():
    # So little noise that its scale, which grows with the rounding of the parts' sums, does not show.
    runs = (trainer(plain_seeded(), seed=3, max_physical_batch_size=m, noise_multiplier=1e-4) for m in (None, 3))
    whole, parts = (run.fit() for run in runs)
    assert whole.accountant.history == parts.accountant.history
    for a, b in zip(weights(whole), weights(parts), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def plain_seeded() -> nn.Module:
    torch.manual_seed(0)
    return plain()


def test_a_seeded_run_is_repeatable_and_its_report_says_so():
    runs = [trainer(plain_seeded(), seed=3).fit() for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(weights(runs[0]), weights(runs[1]), strict=True))
    assert runs[0].report()["privacy"]["seeded"] is True
    secret = [trainer(plain_seeded()) for _ in range(2)]
    for run in secret:
        torch.manual_seed(0)
        run.fit()
    assert not torch.equal(weights(secret[0])[0], weights(secret[1])[0])
    assert secret[0].report()["privacy"]["seeded"] is False


def test_no_noise_spends_everything_and_learns():
    run = trainer(noise_multiplier=0.0, epochs=20, seed=0).fit()
    assert run.get_epsilon() == math.inf
    assert run.evaluate()["accuracy"] > 0.9


# ---------------------------------------------------------------------------------------------------- how it is trained


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


def test_the_average_of_the_weights_is_that_of_every_step_and_costs_nothing():
    plain_run = trainer(plain_seeded(), seed=1)
    seen: list[list[torch.Tensor]] = []

    class Watching:
        def step(self) -> None:
            seen.append(weights(plain_run))

    plain_run.scheduler = Watching()
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
        batch_size=recipe.batch_size,
        epochs=recipe.epochs,
        target_epsilon=8.0,
        target_delta=DELTA,
        progress=False,
    ).fit()
    assert 7.9 < run.get_epsilon() <= 8.0
    assert run.evaluate()["accuracy"] > 0.75
    clean, *certified = run.certified_accuracy([0.0, 36 / 255, 72 / 255])
    assert clean > certified[0] > certified[1] > 0.3


# ------------------------------------------------------------------------------------------------ report and files


def test_the_report_has_every_field_and_says_what_was_spent():
    run = trainer().fit()
    report = run.report(radii=[0.1, 0.2], norm=2)
    validate_report(report)
    for section, fields in FIELDS.items():
        assert set(fields) <= report[section].keys()
    privacy = report["privacy"]
    assert privacy == {
        "epsilon": run.get_epsilon(),
        "delta": DELTA,
        "accountant": "rdp",
        "noise_multiplier": run.optimizer.noise_multiplier,
        "sample_rate": 0.25,
        "sampling": "poisson",
        "steps": 16,
        "releases": [],
        "neighboring": "add_remove",
        "seeded": False,
        "secure": False,
        "distributed": None,
        "trusted_optimizer": None,
        "autocast": None,
        "public_size": 80,
        "tuning": "not accounted",
    }
    assert report["utility"]["accuracy"] == run.evaluate()["accuracy"]
    assert report["certified"] == {"norm": 2, "radii": [0.1, 0.2], "accuracy": run.certified_accuracy([0.1, 0.2])}
    assert report["time"]["train_seconds"] > 0


def test_the_files_of_a_run_agree_with_it_and_with_each_other(tmp_path):
    folder = tmp_path / "new" / "run"
    run = trainer(output_dir=folder).fit()
    assert {f.name for f in folder.iterdir()} == {"report.json", "model.pt", "ledger.jsonl", "checkpoint.safetensors"}
    report = read_report(folder)
    assert report["privacy"]["epsilon"] == run.get_epsilon()
    record = Ledger.read(folder / "ledger.jsonl")
    assert record.epsilon(DELTA) == record.epsilon() == run.get_epsilon()
    assert record.history() == [run.optimizer.event] * 16
    assert (record.neighboring, record.mechanism) == ("add_remove", "rdp")
    again = orthogonal()
    again.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    x = HELD_OUT.tensors[0]
    assert torch.equal(again(x), run.model(x))


def test_an_infinite_epsilon_is_written_as_a_string(tmp_path):
    trainer(noise_multiplier=0.0, epochs=1, output_dir=tmp_path).fit()
    assert json.loads((tmp_path / "report.json").read_text())["privacy"]["epsilon"] == "inf"
    assert Ledger.read(tmp_path / "ledger.jsonl").epsilon(DELTA) == math.inf


def test_the_ledger_holds_a_step_before_its_noise_is_drawn(tmp_path):
    run = trainer(output_dir=tmp_path)
    draw = run.optimizer.noise.add_

    def failing(tensor, std):
        if run.accountant.num_steps == 5:
            raise KeyboardInterrupt
        return draw(tensor, std)

    run.optimizer.noise.add_ = failing
    with pytest.raises(KeyboardInterrupt):
        run.fit()
    assert len(Ledger.read(tmp_path / "ledger.jsonl").history()) == 5


def test_a_step_that_cannot_be_recorded_is_not_taken(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise LedgerError("the disk is full")

    monkeypatch.setattr(Ledger, "append", full)
    run = trainer(output_dir=tmp_path)
    before = weights(run)
    with pytest.raises(LedgerError):
        run.fit()
    assert run.accountant.num_steps == 0
    assert all(torch.equal(a, b) for a, b in zip(before, weights(run), strict=True))


def test_a_new_run_in_the_folder_of_another_keeps_the_record_of_what_that_one_spent(tmp_path):
    trainer(output_dir=tmp_path, epochs=1).fit()
    written = (tmp_path / "ledger.jsonl").read_bytes()
    second = trainer(output_dir=tmp_path, epochs=1).fit()
    kept = [f for f in tmp_path.glob("ledger*.jsonl") if f.read_bytes() == written]
    assert len(kept) == 1 and kept[0].name != "ledger.jsonl"
    assert Ledger.read(tmp_path / "ledger.jsonl").epsilon() == second.get_epsilon()


def test_an_interrupted_run_goes_on_with_its_own_ledger(tmp_path):
    run = interrupted(trainer(output_dir=tmp_path), 6)
    assert len(Ledger.read(tmp_path / "ledger.jsonl").history()) == 6
    run.optimizer._charge(run.optimizer.event)  # a step by hand is written, too
    assert run.accountant.num_steps == 7 == len(Ledger.read(tmp_path / "ledger.jsonl").history())
    run.fit()
    assert len(Ledger.read(tmp_path / "ledger.jsonl").history()) == 16
    assert len(list(tmp_path.glob("ledger*"))) == 1
    assert read_report(tmp_path)["privacy"]["epsilon"] == Ledger.read(tmp_path / "ledger.jsonl").epsilon()


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = trainer(epochs=1).fit()
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigurationError, match="output_dir"):
        run.save()


@pytest.mark.parametrize("content", [None, "", "{", "[]", "3", "{}", '{"privacy": {}}'])
def test_what_is_no_report_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(ConfigurationError):
        read_report(tmp_path)


def test_a_quiet_run_prints_nothing(capfd, tmp_path):
    run = trainer(output_dir=tmp_path)
    run.plan()
    run.fit()
    run.evaluate()
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""


def test_a_run_shows_its_plan_and_the_epsilon_spent_but_no_private_loss(capfd):
    run = trainer(progress=True)
    run.plan()
    run.fit()
    captured = capfd.readouterr()
    text = captured.out + captured.err
    assert "noise multiplier" in text and "16/16" in text
    assert f"epsilon={run.get_epsilon():.3f}" in text
    assert "loss" not in text


def test_a_private_loss_is_shown_only_on_demand_and_named_as_leaking(capfd):
    trainer(progress=True, show_private_loss=True).fit()
    assert "leaks" in capfd.readouterr().err
