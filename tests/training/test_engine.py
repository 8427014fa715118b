"""PrivacyEngine: Opacus's flow and keywords, with what would not be private refused and a remedy named."""

import math
from typing import Any

import pytest
import torch
from helpers.engines import epoch, parts
from helpers.epsilons import DELTA
from helpers.models import orthogonal, plain
from helpers.runs import examples
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler

import dplip
from dplip import PrivacyEngine
from dplip.errors import ConfigurationError, UnboundedInputError
from dplip.sampling import PoissonLoader


def test_the_flow_of_opacus_trains_privately_and_counts_every_step():
    given = parts()
    engine = PrivacyEngine()
    assert engine.get_epsilon(delta=DELTA) == 0
    before = given["module"][1].weight.clone()
    model, optimizer, loader = engine.make_private(**given, noise_multiplier=1.1)
    assert model is given["module"]
    assert isinstance(loader, PoissonLoader) and loader.sample_rate == 0.25
    assert sum(epoch(model, optimizer, loader, given["criterion"]) for _ in range(3)) == 12
    assert engine.accountant.history == [(1.1, 0.25, 12)]
    alone = dplip.create_accountant("rdp")
    for _ in range(12):
        alone.step(noise_multiplier=1.1, sample_rate=0.25)
    assert engine.get_epsilon(delta=DELTA) == alone.get_epsilon(DELTA) > 0
    assert not torch.equal(before, model[1].weight)


def test_a_loader_of_poisson_batches_is_taken_as_it_is():
    given = parts()
    given["data_loader"] = PoissonLoader(examples(40), batch_size=10)
    plan: dict[str, Any] = {"target_epsilon": 2.0, "target_delta": DELTA, "epochs": 2}
    _, optimizer, loader = PrivacyEngine().make_private_with_epsilon(**given, **plan)
    assert loader is given["data_loader"] and optimizer.noise_multiplier > 0
    with pytest.raises(ConfigurationError, match="public_size=9"):
        PrivacyEngine().make_private_with_epsilon(**{**parts(), **given}, **plan, public_size=9)


def test_a_shuffled_loader_becomes_a_poisson_loader_whose_batches_vary():
    given = parts(count=200, batch_size=20)
    _, _, loader = PrivacyEngine().make_private(**given, noise_multiplier=1.0)
    sizes = [len(x) for x, _ in loader]
    assert len(sizes) == len(loader) == 10
    assert len(set(sizes)) > 2


def test_training_without_noise_learns_and_costs_everything():
    given = parts(count=200, batch_size=50, lr=0.5)
    engine = PrivacyEngine()
    model, optimizer, loader = engine.make_private(**given, noise_multiplier=0.0)
    for _ in range(30):
        epoch(model, optimizer, loader, given["criterion"])
    x, y = examples(200).tensors
    assert float((model(x).argmax(1) == y).float().mean()) > 0.9
    assert engine.get_epsilon(DELTA) == math.inf


@pytest.mark.parametrize(
    "arguments, remedy",
    [
        ({"max_grad_norm": 1.0}, "bound_gradients"),
        ({"loss_reduction": "mean"}, r"dplip\.losses"),
        ({"poisson_sampling": False}, "full batch"),
        ({"neighboring": "swap"}, "add_remove"),
        ({"noise_multiplier": -1.0}, "noise_multiplier"),
        ({"public_size": 5}, "batch_size"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else None,
)
def test_what_does_not_fit_is_refused_with_a_remedy_and_nothing_is_changed(arguments, remedy):
    given = parts()
    engine = PrivacyEngine()
    with pytest.raises(ConfigurationError, match=remedy):
        engine.make_private(**given, **{"noise_multiplier": 1.0, **arguments})
    assert not given["module"]._forward_hooks
    assert given["criterion"].monitor is None
    assert engine.accountant.num_steps == 0


@pytest.mark.parametrize(
    "arguments, remedy", [({"secure_mode": True, "accountant": "prv"}, "Use 'rdp'"), ({"accountant": "gdp"}, "rdp|prv")]
)
def test_an_engine_that_cannot_be_offered_is_refused(arguments, remedy):
    with pytest.raises(ConfigurationError, match=remedy):
        PrivacyEngine(**arguments)


def test_a_loss_that_declares_no_bound_is_refused():
    given = {**parts(), "criterion": nn.CrossEntropyLoss()}
    with pytest.raises(ConfigurationError, match=r"dplip\.losses"):
        PrivacyEngine().make_private(**given, noise_multiplier=1.0)


def test_a_model_whose_input_nothing_bounds_is_refused():
    with pytest.raises(UnboundedInputError, match="BallProjection"):
        PrivacyEngine().make_private(**parts(nn.Sequential(nn.Linear(6, 4))), noise_multiplier=1.0)


def test_a_weighted_sampler_is_refused_as_poisson_sampling_would_drop_the_weights():
    sampler = WeightedRandomSampler([1.0] * 20 + [3.0] * 20, num_samples=40)
    given = {**parts(), "data_loader": DataLoader(examples(40), batch_size=10, sampler=sampler)}
    with pytest.raises(ConfigurationError, match=r"[Ss]ampler"):
        PrivacyEngine().make_private(**given, noise_multiplier=1.0)


def test_a_neighbour_of_the_data_trains_with_the_same_constants():
    constants = []
    for count in (39, 40, 41):
        _, optimizer, loader = PrivacyEngine().make_private(**parts(count=count), noise_multiplier=1.0, public_size=40)
        constants.append(
            (loader.sample_rate, len(loader), optimizer.expected_batch_size, dict(optimizer.sensitivities()))
        )
    assert constants[0][:3] == constants[1][:3] == constants[2][:3] == (0.25, 4, 10.0)


def test_replace_one_doubles_the_noise_and_not_the_epsilon():
    stds = []
    for neighboring in ("add_remove", "replace_one"):
        torch.manual_seed(0)
        _, optimizer, _ = PrivacyEngine().make_private(**parts(), noise_multiplier=1.0, neighboring=neighboring)
        stds.append(optimizer.sensitivities().total)
    assert stds[1] == pytest.approx(2 * stds[0])


def test_physical_batches_are_of_the_given_size_and_the_steps_of_the_logical_ones():
    given = parts(count=200, batch_size=100)
    engine = PrivacyEngine()
    model, optimizer, loader = engine.make_private(**given, noise_multiplier=1.0, max_physical_batch_size=16)
    batches = epoch(model, optimizer, loader, given["criterion"])
    assert batches >= 10
    assert engine.accountant.num_steps == len(loader) == 2


def test_a_batch_of_the_whole_data_is_the_full_batch():
    given = parts(batch_size=40)
    engine = PrivacyEngine()
    model, optimizer, loader = engine.make_private(**given, noise_multiplier=1.0)
    assert [len(x) for x, _ in loader] == [40]
    epoch(model, optimizer, loader, given["criterion"])
    assert engine.accountant.history == [(1.0, 1.0, 1)]


def test_the_shape_of_an_example_is_read_off_the_data_or_given():
    class Pictures(Dataset):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int):
            return torch.full((1, 2, 3), float(index)), index % 4

    given = {**parts(nn.Sequential(nn.Flatten(), orthogonal())), "data_loader": DataLoader(Pictures(), batch_size=10)}
    model, optimizer, loader = PrivacyEngine().make_private(**given, noise_multiplier=1.0)
    assert epoch(model, optimizer, loader, given["criterion"]) == 4
    given = {**parts(nn.Sequential(nn.Flatten(), orthogonal())), "data_loader": DataLoader(Pictures(), batch_size=10)}
    PrivacyEngine().make_private(**given, noise_multiplier=1.0, input_shape=(1, 2, 3))


def test_a_seed_makes_a_run_repeatable_and_without_one_no_two_runs_agree():
    def weights(seed: int | None) -> torch.Tensor:
        torch.manual_seed(0)
        given = parts(plain())
        model, optimizer, loader = PrivacyEngine().make_private(**given, noise_multiplier=1.0, seed=seed)
        torch.manual_seed(0)
        epoch(model, optimizer, loader, given["criterion"])
        return model[1].weight.detach()

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(None), weights(None))


def test_empty_batches_are_steps_like_all_others():
    given = parts(count=3, batch_size=1)
    engine = PrivacyEngine()
    model, optimizer, loader = engine.make_private(**given, noise_multiplier=1.0, public_size=100)
    handed_out = []
    for x, y in loader:
        handed_out.append(loader.handed_out)
        optimizer.zero_grad()
        given["criterion"](model(x), y).backward()
        optimizer.step()
    assert handed_out.count(0) > 50
    assert engine.accountant.history == [(1.0, 0.01, 100)]
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("option", [{"public_size": 100}, {"max_physical_batch_size": 5}])
def test_options_of_the_loader_are_not_dropped_where_a_private_loader_is_given(option):
    """They would have to be given to that loader; to accept and ignore them would mislead."""
    given = {**parts(), "data_loader": PoissonLoader(examples(40), batch_size=10)}
    with pytest.raises(ConfigurationError, match=next(iter(option))):
        PrivacyEngine().make_private(**given, noise_multiplier=1.0, **option)


def test_labels_out_of_range_are_refused_before_anything_is_spent():
    x, _ = examples(40).tensors
    given = {**parts(), "data_loader": DataLoader(TensorDataset(x, torch.full((40,), 4)), batch_size=10)}
    engine = PrivacyEngine()
    with pytest.raises(ConfigurationError, match="0 to 3"):
        engine.make_private(**given, noise_multiplier=1.0)
    assert engine.accountant.num_steps == 0
