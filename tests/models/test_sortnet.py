"""A SortNet is trained, certified, and not broken by an attack package."""

import itertools
import math
from math import inf

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import dplip.nn as dn
from dplip.certificates import correct_radii
from dplip.data import load
from dplip.models.sortnet import SORTNETS, exponent_at


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, TensorDataset]:
    data = load("digits")
    recipe = SORTNETS["digits"]
    torch.manual_seed(0)
    trainer = recipe.trainer(data, noise_multiplier=0.0, progress=False, seed=0)
    model = trainer.model
    trainer.fit()
    assert trainer.get_epsilon() == inf
    report = trainer.report()
    assert report["certified"]["norm"] == "inf" and report["certified"]["radii"][-1] == 0.3
    assert all(math.isinf(m.p) for m in model.modules() if isinstance(m, dn.LInfDistance))
    return model.eval(), data.test


def test_a_trained_sortnet_certifies_what_an_attack_package_cannot_break(digits):
    model, test = digits
    radii = correct_radii(model, test, inf)
    assert float((radii >= 0).double().mean()) > 0.8
    assert float((radii > 0.1).double().mean()) > 0.5
    foolbox = pytest.importorskip("foolbox")
    x, y = (t[:100] for t in test.tensors)
    net = foolbox.PyTorchModel(model, bounds=(0, 1))
    for radius in (0.1, 0.3):
        attack = foolbox.attacks.LinfPGD(steps=20)
        _, _, broken = attack(net, x, y, epsilons=radius)
        assert not bool((broken & (radii[:100] > radius)).any())
    assert bool(broken.any())  # the attack is no straw man


def test_the_schedule_doubles_the_exponent_and_ends_at_the_maximum():
    at = [exponent_at(k / 100, 0.8) for k in range(101)]
    assert at[0] == 8 and at[79] == 1024 and at[80] == at[100] == inf
    assert all(a <= b for a, b in itertools.pairwise(at))
