"""A public network inside a private model: any layers, evaluation mode for good, and nothing claimed of its output."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import dplip
from dplip import nn as dn
from dplip.errors import ConfigurationError, UnboundedInputError, UnboundedOperationError
from dplip.losses import CrossEntropy

LOSS = CrossEntropy(normalize=True)


class Attention(nn.Module):
    """A layer that the algebra refuses, with dropout inside."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=8, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x[:, 0]).flatten(1)


class Centred(nn.Module):
    """What makes one example's output depend on the others."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(0)).flatten(1)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.SiLU(), nn.MaxPool2d(2), nn.Dropout(0.5), nn.Flatten()
    )


def model(public: nn.Module) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(dn.Frozen(public), dn.BallProjection(1.0), nn.Linear(64, 3, bias=False))


def trainer(net: nn.Module, **arguments: object) -> dplip.DPLipTrainer:
    x = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    data = TensorDataset(x, (x.mean((1, 2, 3)) * 100).long() % 3)
    settings: dict[str, Any] = {
        "train_dataset": data,
        "batch_size": 30,
        "epochs": 3,
        "noise_multiplier": 1.0,
        "seed": 3,
    }
    settings["optimizer"] = torch.optim.SGD(net.parameters(), lr=0.5)
    return dplip.DPLipTrainer(net, loss=LOSS, progress=False, **{**settings, **arguments})


@pytest.mark.parametrize("precompute", [False, True])
@pytest.mark.parametrize("build", [network, Attention])
def test_any_public_network_serves_and_only_what_follows_it_is_trained(build, precompute):
    public = build()
    net = model(public)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    bounds = trainer(net, precompute=precompute, ema_decay=0.5).fit().optimizer.sensitivities()
    assert list(bounds) == ["2.weight"] and bounds["2.weight"] == pytest.approx(1.0, rel=2e-3)
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"2.weight"}  # running statistics included: they stay as they were
    assert not any(m.training for m in public.modules())


def test_both_ways_of_running_it_train_the_same_weights():
    nets = [model(network()) for _ in range(2)]
    for net, precompute in zip(nets, (False, True), strict=True):
        trainer(net, precompute=precompute).fit()
    assert torch.allclose(nets[0].get_parameter("2.weight"), nets[1].get_parameter("2.weight"), atol=1e-6)


def test_the_mode_of_the_model_does_not_reach_it():
    net = model(network())
    x = torch.rand(5, 1, 8, 8)
    assert net.train() is net and net[0].training
    assert torch.equal(net.train()(x), net.eval()(x))


@pytest.mark.parametrize(
    "public", [Centred(), nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten())]
)
def test_a_network_that_mixes_the_examples_of_a_batch_is_refused(public):
    with pytest.raises(UnboundedOperationError, match="depend on another"):
        dplip.sensitivity(model(public), LOSS, (1, 8, 8))


def test_a_network_that_is_put_into_training_mode_afterwards_is_refused():
    net = model(network())
    private = trainer(net)
    net[0].module.train()
    with pytest.raises(UnboundedOperationError, match="depend on another"):
        private.optimizer.sensitivities()


def test_a_weight_that_is_thawed_is_refused():
    net = model(network())
    net[0].module[0].weight.requires_grad_(True)
    with pytest.raises(UnboundedOperationError, match=r"Frozen has a parameter 'module\.0\.weight'"):
        dplip.sensitivity(net, LOSS, (1, 8, 8))


def test_what_follows_it_needs_a_bound_of_its_own():
    net = nn.Sequential(dn.Clamp(0.0, 1.0), dn.Frozen(network()), nn.Linear(64, 3))
    with pytest.raises(UnboundedInputError, match="BallProjection"):
        dplip.sensitivity(net, LOSS, (1, 8, 8))
    with pytest.raises(ConfigurationError, match="BallProjection"):
        trainer(net, precompute=True)


def test_nothing_is_trained_before_it():
    early = nn.Sequential(dn.Clamp(0.0, 1.0), nn.Conv2d(1, 1, 1), *model(network()))
    with pytest.raises(UnboundedInputError):
        dplip.sensitivity(early, LOSS, (1, 8, 8))


def test_no_certificate_is_given():
    net = model(network())
    assert dplip.lipschitz(net, (1, 8, 8)) == math.inf
    assert (dplip.certify(net, torch.rand(4, 1, 8, 8)) == 0).all()


@pytest.mark.parametrize("held", ["trainable", "with a gradient"])
def test_an_optimizer_holds_nothing_else_that_would_move(held):
    net = model(network())
    other = nn.Parameter(torch.zeros(2), requires_grad=held == "trainable")
    other.grad = None if held == "trainable" else torch.ones(2)
    optimizer = torch.optim.SGD([*net.parameters(), other], lr=0.5)
    with pytest.raises(ConfigurationError, match="holds 1 parameters that are not the model's"):
        trainer(net, optimizer=optimizer, precompute=True)
