"""Without noise, several ranks take the steps of one process: each example counts once, and a blank row not at all."""

from typing import Any

import pytest
import torch
from helpers.enforced import CASES, items
from helpers.joint import DATA, Joint, network
from helpers.ranks import values

import dplip
from dplip import FixedSizeLoader, PoissonLoader
from dplip.distributed import Group
from dplip.training.calls import Calls


def trained(group, **arguments):
    loader = arguments.pop("loader", None)
    joint = Joint(group, loader=None if loader is None else loader(), **arguments).epoch()
    return joint.weights(), len(joint.charged)


LOADERS = {
    "whole batches": None,
    "parts": lambda: PoissonLoader(DATA, batch_size=30, seed=5, max_physical_batch_size=4),
    "small batches": lambda: PoissonLoader(DATA, batch_size=2, seed=5),
    "small parts": lambda: PoissonLoader(DATA, batch_size=4, seed=5, max_physical_batch_size=1, steps_per_epoch=20),
    "fixed size": lambda: FixedSizeLoader(DATA, batch_size=10, seed=5, max_physical_batch_size=4),
}


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("size", [2, 3])
def test_the_weights_are_those_of_one_process(name, size):
    replace = {"neighboring": "replace_one"} if name == "fixed size" else {}
    alone, steps = trained(Group(), loader=LOADERS[name], **replace)
    found = values(size, lambda group: trained(group, loader=LOADERS[name], **replace))
    assert all(torch.equal(weights, found[0][0]) and count == steps for weights, count in found)
    assert torch.allclose(found[0][0], alone, atol=1e-6)
    assert not torch.allclose(alone, network_weights(), atol=1e-2)


def network_weights():
    return torch.cat([p.detach().flatten() for p in network().parameters()])


@pytest.mark.parametrize("name", ["a product", "words", "recurrent", "two heads"])
def test_models_of_any_code_train_so_too(name):
    """Parts of few examples, so that many ranks have blank rows."""

    def train(group):
        torch.manual_seed(0)
        model, loss = CASES[name].model(), CASES[name].loss
        data: Any = items(CASES[name])
        dplip.nn.bound_gradients(model.train(), 1.0)
        model, optimizer, loader = dplip.PrivacyEngine().make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=PoissonLoader(data, batch_size=6, seed=1, max_physical_batch_size=2),
            criterion=loss,
            noise_multiplier=0.0,
            distributed=group,
        )
        calls = Calls(model, None, None)
        for batch in loader:
            call, targets = calls.of(batch)
            optimizer.zero_grad()
            loss(calls.run(model, call, torch.device("cpu")), targets).backward()
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    alone = train(Group())
    for weights in values(2, train):
        assert torch.allclose(weights, alone, atol=1e-5)
