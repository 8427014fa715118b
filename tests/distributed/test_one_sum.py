"""Without noise, several ranks take the steps of one process: each example counts once, and a blank row not at all."""

import pytest
import torch
from helpers.joint import DATA, Joint, network
from helpers.ranks import values

from dplip import FixedSizeLoader, PoissonLoader
from dplip.distributed import Group


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
