"""A fixed front end is run once per example, and everything private rests on what follows it."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import dplip
from dplip import nn as dn
from dplip.losses import CrossEntropy
from dplip.training import DPLipTrainer
from dplip.training.feature_extractor import features, split_extractor

LOSS = CrossEntropy(normalize=True)


def model(*between: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        dn.Clamp(0.0, 1.0), nn.AvgPool2d(2), *between, nn.Flatten(), dn.BallProjection(2.0), nn.Linear(16, 3)
    )


class Doubled(nn.Module):
    """A module that the walk goes into: it has no rule of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2.0


def data(size: int = 60) -> TensorDataset:
    x = torch.rand(size, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, (x.mean((1, 2, 3)) * 100).long() % 3)


def trainer(net: nn.Module, **arguments: object) -> DPLipTrainer:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    settings: dict[str, Any] = {
        "train_dataset": data(),
        "batch_size": 30,
        "epochs": 3,
        "noise_multiplier": 1.0,
        "seed": 3,
    }
    return DPLipTrainer(net, loss=LOSS, optimizer=optimizer, progress=False, **{**settings, **arguments})


def test_the_front_ends_where_the_rest_still_bounds_its_own_input():
    net = model()
    fixed, rest = split_extractor(net, LOSS, (1, 8, 8))
    assert [type(m) for m in fixed] == [dn.Clamp, nn.AvgPool2d, nn.Flatten]
    assert list(rest) == list(net)[3:] and all(p is q for p, q in zip(rest.parameters(), net.parameters(), strict=True))
    # Nothing is said of the features, whatever their size: the bound is the ball's.
    assert dplip.sensitivity(rest, LOSS, (16,))["4.weight"] == pytest.approx(2.0, rel=1e-4)


@pytest.mark.parametrize("late", [nn.Dropout(0.01), nn.Conv2d(1, 1, 1), Doubled()])
def test_the_front_ends_before_a_layer_with_chance_with_parameters_or_without_a_rule(late: nn.Module):
    net = model(dn.BallProjection(4.0), late)
    fixed, _ = split_extractor(net, LOSS, (1, 8, 8))
    assert late not in list(fixed) and len(fixed) >= 2


@pytest.mark.parametrize(
    "net",
    [nn.Sequential(nn.Linear(4, 2)), nn.Sequential(dn.BallProjection(1.0), nn.Linear(4, 2)), dn.BallProjection(1.0)],
)
def test_a_model_without_a_front_end_is_refused(net: nn.Module):
    with pytest.raises(dplip.ConfigurationError, match="precompute=True"):
        split_extractor(net, LOSS, (4,))


def test_training_is_that_of_the_whole_model():
    whole, ahead = trainer(model()).fit(), trainer(model(), precompute=True).fit()
    for p, q in zip(whole.model.parameters(), ahead.model.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-4, atol=1e-6)
    assert whole.get_epsilon() == ahead.get_epsilon()
    assert ahead.evaluate(data())["accuracy"] == whole.evaluate(data())["accuracy"]
    assert ahead.input_shape == (1, 8, 8)


def test_layers_of_the_front_run_once_for_each_example():
    net = model()
    seen = []
    made = trainer(net, precompute=True)
    forward = nn.AvgPool2d.forward
    try:
        nn.AvgPool2d.forward = lambda self, x: seen.append(len(x)) or forward(self, x)  # type: ignore[assignment, func-returns-value]
        made.fit()
    finally:
        nn.AvgPool2d.forward = forward
    assert not seen


def test_a_neighbour_of_the_data_changes_one_example_only():
    fixed, _ = split_extractor(model(), LOSS, (1, 8, 8))
    all_of_them, fewer = data(60), TensorDataset(*data(60)[:59])
    assert torch.equal(features(fixed, all_of_them).tensors[0][:59], features(fixed, fewer).tensors[0])


def test_an_example_is_the_same_to_the_last_bit_whatever_stands_before_it():
    """One example less shifts all others; the front end is given each of them alone."""

    class Batched(nn.AvgPool2d):  # what a kernel may do: its rounding depends on the batch
        pass

    def forward(self: nn.AvgPool2d, x: torch.Tensor) -> torch.Tensor:
        return nn.AvgPool2d.forward(self, x) * (1 + 1e-6 * len(x))

    Batched.forward = forward  # type: ignore[assignment]
    x, y = data(70).tensors
    layer = Batched(2)
    every = features(layer, TensorDataset(x, y)).tensors[0]
    assert torch.equal(every[1:], features(layer, TensorDataset(x[1:], y[1:])).tensors[0])


def test_a_run_is_resumed(tmp_path):
    first = trainer(model(), precompute=True, output_dir=tmp_path, checkpoint_every=1)
    charge: Any = first.optimizer._charge
    steps: list[Any] = []

    def fail(event: object) -> None:
        if len(steps) == 3:
            raise KeyboardInterrupt
        steps.append(event)
        charge(event)

    first.optimizer._charge = fail
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    second = trainer(model(), precompute=True, output_dir=tmp_path, checkpoint_every=1).fit(resume=True)
    assert second.accountant.num_steps == second.steps == 6


def test_a_not_a_number_in_the_data_reaches_no_weight():
    x, y = data().tensors
    x = x.clone()
    x[0, 0, 0, 0] = float("nan")
    made = trainer(model(), precompute=True, train_dataset=TensorDataset(x, y)).fit()
    assert all(bool(p.isfinite().all()) for p in made.model.parameters())
