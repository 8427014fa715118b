"""Canaries: they show nearly all of epsilon, and never more than was spent."""

import pytest
import torch
from helpers.models import built
from torch.utils.data import Subset

from dplip import audit
from dplip.data import load
from dplip.errors import ConfigurationError
from dplip.losses import CrossEntropy
from dplip.models import preset
from dplip.noise import GaussianNoise

SIGMA = {1.0: 3.7306, 4.0: 1.0812, 8.0: 0.60024}
"""Of a full-batch Gaussian whose exact epsilon at delta 1e-5 is the key."""

FLOORS = {1.0: 0.6, 4.0: 3.3, 8.0: 7.0}


@pytest.mark.parametrize("epsilon", FLOORS)
def test_dirac_canaries_show_nearly_all_of_epsilon_and_never_more(epsilon):
    model, shape = built("orthogonal")
    found = [
        audit.audit_noise(model, CrossEntropy(), shape, noise_multiplier=SIGMA[epsilon], noise=GaussianNoise(k), seed=k)
        for k in range(3)
    ]
    assert audit.gaussian_epsilon(1 / SIGMA[epsilon], 1e-5) == pytest.approx(epsilon, rel=1e-3)
    assert all(one.lower <= epsilon <= one.accounted and not one.violated for one in found)
    middle = sorted(found, key=lambda one: one.lower)[1]
    assert middle.canaries == 10_000 and middle.lower >= FLOORS[epsilon] and middle.powerful


@pytest.mark.parametrize("neighboring", ["add_remove", "replace_one"])
def test_half_the_noise_is_shown_to_be_too_little(neighboring):
    class Half(GaussianNoise):
        def add_(self, tensor, std):
            return super().add_(tensor, std / 2)

    model, shape = built("plain")
    arguments = {"noise_multiplier": 1.08, "neighboring": neighboring, "canaries": 1000}
    assert audit.audit_noise(model, CrossEntropy(), shape, noise=Half(1), **arguments).violated
    assert not audit.audit_noise(model, CrossEntropy(), shape, noise=GaussianNoise(1), **arguments).violated


def test_without_noise_there_is_nothing_to_audit():
    model, shape = built("plain")
    with pytest.raises(ConfigurationError, match=r"noise_multiplier=0\.0"):
        audit.audit_noise(model, CrossEntropy(), shape, noise_multiplier=0.0)


def test_one_run_with_canaries_in_the_data_shows_a_part_of_epsilon():
    data, recipe = load("digits"), preset("digits")
    torch.manual_seed(0)
    model = recipe.model(data.input_shape, 10)
    found = audit.one_run(
        model,
        recipe.loss(),
        Subset(data.train, range(200)),
        input_shape=data.input_shape,
        noise_multiplier=3.0,
        sample_rate=1.0,
        steps=20,
        canaries=640,
        floor=1.0,
        seed=0,
    )
    assert 7 < found.accounted < 8
    assert found.powerful and not found.violated
