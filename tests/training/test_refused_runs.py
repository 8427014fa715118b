"""Arguments, data and targets from which no sound run can be made are refused before training."""

import math

import pytest
import torch
from helpers.models import Pooled, orthogonal
from helpers.runs import HELD_OUT, TRAIN, examples
from helpers.trainers import trainer, weights
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import dplip.nn as dn
from dplip import DPLipTrainer
from dplip.errors import ConfigurationError, UnboundedInputError
from dplip.losses import BinaryCrossEntropy, CrossEntropy, Huber


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
        trainer(**{which: TensorDataset(x.to(dtype), y)})  # type: ignore[arg-type]


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
        trainer().fit(resmue=True)  # type: ignore[call-arg]


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
        trainer(**{which: inputs_and_labels(y=labels)})  # type: ignore[arg-type]


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
    with pytest.raises(ConfigurationError, match="one target for each score"):
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
