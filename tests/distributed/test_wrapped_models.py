"""DistributedDataParallel around a model: its own sums are turned off, and what cannot be turned off is refused."""

import pytest
import torch
from helpers.joint import DATA, Joint, network
from helpers.ranks import on_ranks, refusals, values
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel as DDP

import dplip
from dplip.distributed import Group
from dplip.errors import ConfigurationError


def trained(group, wrap=lambda model: model, **arguments):
    return Joint(group, wrap=wrap, loader=parts(), **arguments).epoch().weights()


def parts():
    return dplip.PoissonLoader(DATA, batch_size=30, seed=5, max_physical_batch_size=4)


@pytest.mark.parametrize("size", [2, 3])
def test_a_wrapped_model_trains_as_a_plain_one(size):
    alone = trained(Group())
    for weights in values(size, lambda group: trained(group, wrap=DDP)):
        assert torch.allclose(weights, alone, atol=1e-6)


def test_the_engine_takes_a_wrapped_model_and_returns_it():
    def train(group):
        wrapped = DDP(network())
        module, optimizer, loader = dplip.PrivacyEngine().make_private(
            module=wrapped,
            optimizer=torch.optim.Adam(wrapped.parameters(), lr=0.01),
            data_loader=torch.utils.data.DataLoader(DATA, batch_size=30),
            criterion=(loss := dplip.losses.CrossEntropy()),
            noise_multiplier=1.0,
            distributed="auto",
        )
        assert module is wrapped
        for x, y in loader:
            optimizer.zero_grad()
            loss(module(x), y).backward()
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    assert torch.equal(*values(2, train))


def hooked(model):
    wrapped = DDP(model)
    wrapped.register_comm_hook(None, default_hooks.allreduce_hook)
    return wrapped


WRAPPERS = {
    "find_unused_parameters=True": lambda model: DDP(model, find_unused_parameters=True),
    "static_graph=True": lambda model: DDP(model, static_graph=True),
    "gradient_as_bucket_view=True": lambda model: DDP(model, gradient_as_bucket_view=True),
    "register_comm_hook": hooked,
    "delay_all_reduce_named_params": lambda model: DDP(
        model, delay_all_reduce_named_params=[("1.weight", model[1].weight)], param_to_hook_all_reduce=model[3].weight
    ),
}


@pytest.mark.parametrize("option", WRAPPERS)
def test_an_option_that_changes_gradients_is_refused_by_name(option):
    kind, text = refusals(2, lambda group: trained(group, wrap=WRAPPERS[option]))
    assert kind is ConfigurationError
    assert option in text


def test_a_model_that_is_wrapped_later_is_refused():
    def train(group):
        joint = Joint(group)
        joint.called = DDP(joint.model)
        try:
            joint.epoch()
        finally:
            assert not joint.charged

    kind, text = refusals(2, train)
    assert kind is ConfigurationError
    assert "sums gradients by itself" in text


def test_sums_that_are_turned_on_again_are_refused():
    def train(group):
        joint = Joint(group, wrap=DDP)
        joint.called.require_backward_grad_sync = True
        joint.epoch()

    kind, text = refusals(2, train)
    assert kind is ConfigurationError
    assert "sums gradients by itself" in text


def test_join_is_refused():
    def train(group):
        joint = Joint(group, wrap=DDP)
        with joint.called.join():
            joint.epoch()

    for outcome in on_ranks(2, train):
        assert outcome.error is not None


def test_without_no_sync_it_makes_no_difference():
    def train(group):
        joint = Joint(group, wrap=DDP, loader=parts())
        with joint.called.no_sync():
            joint.epoch()
        return joint.epoch().weights()

    assert torch.equal(*values(2, train))


def test_replicas_in_one_process_are_refused():
    with pytest.raises(ConfigurationError, match="module=DataParallel"):
        Joint(Group(), wrap=nn.DataParallel)


def test_ranks_begin_with_the_weights_and_buffers_of_the_first():
    def begin(group):
        model = network(seed=group.rank)
        model.register_buffer("counted", torch.tensor([float(group.rank)]))
        joint = Joint(group, model=model)
        return joint.weights(), model.counted

    for weights, buffer in values(3, begin):
        assert torch.equal(weights, torch.cat([p.detach().flatten() for p in network(seed=0).parameters()]))
        assert float(buffer) == 0.0
