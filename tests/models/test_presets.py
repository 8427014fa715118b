"""The fields of the certified presets: what their models and schedules do with them."""

import dataclasses

import pytest
import torch

import dplip
from dplip import nn as dn
from dplip.data import load
from dplip.errors import ConfigurationError
from dplip.losses import CrossEntropy
from dplip.models import Preset
from dplip.models.l2 import PRESETS
from dplip.training.schedules import Annealing

DIGITS = dataclasses.replace(PRESETS["digits"], epochs=2)
COLOUR = (3, 8, 8)


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_sensitivity_is_the_radii_of_the_gradients(mirrored):
    preset = dataclasses.replace(DIGITS, widths=(16, 8), gradient_radii=(2.0, 1.5, 0.5), mirrored=mirrored, radius=50.0)
    bounds = dplip.sensitivity(preset.model(COLOUR, 10), preset.loss(), COLOUR)
    assert list(bounds.values()) == pytest.approx([2.0, 1.5, 0.5], rel=1e-4)


@pytest.mark.parametrize("frequencies", [None, 4, (4, 2)])
def test_every_front_can_be_mirrored_and_stays_1_lipschitz(frequencies):
    preset = dataclasses.replace(DIGITS, frequencies=frequencies, mirrored=True)
    model, x = preset.model(COLOUR, 10).eval(), torch.rand(3, *COLOUR)
    torch.testing.assert_close(model(x), model(x.flip(-1)))
    assert dplip.lipschitz(model, COLOUR) == pytest.approx(1.0, abs=1e-3)


def test_a_mean_within_views_is_refused():
    preset = dataclasses.replace(DIGITS, mirrored=True, mean_radius=3.0)
    with pytest.raises(ConfigurationError, match="PrivateMean"):
        preset.trainer(load("digits"), target_epsilon=8.0, progress=False)


@pytest.mark.parametrize(
    "wrong, words", [({"gradient_radii": (1.0,)}, "2 layers"), ({"first_temperature": 1.0}, "decay=True")]
)
def test_fields_that_do_not_fit_are_refused(wrong, words):
    with pytest.raises(ConfigurationError, match=words):
        dataclasses.replace(DIGITS, **wrong)


def test_the_temperature_goes_in_a_line_and_the_learning_rate_along_half_a_cosine():
    preset = Preset(
        0.5, 3.0, widths=(4,), temperature=6.0, decay=True, first_temperature=2.0, lr=0.1, batch_size=8, epochs=1
    )
    model, loss = preset.model((1, 4, 4), 3), preset.loss()
    optimizer = preset.optimizer(model)
    schedule = preset.scheduler(optimizer, model, loss, 4)
    assert isinstance(schedule, Annealing) and isinstance(loss, CrossEntropy)
    seen = [(loss.temperature, optimizer.param_groups[0]["lr"])]
    for _ in range(4):
        optimizer.step()
        schedule.step()
        seen.append((loss.temperature, optimizer.param_groups[0]["lr"]))
    assert [t for t, _ in seen] == pytest.approx([2.0, 3.0, 4.0, 5.0, 6.0])
    assert [r for _, r in seen] == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447, 0.0], abs=1e-6)


def test_a_run_with_bounded_gradients_and_a_rising_temperature_learns_and_keeps_its_budget(tmp_path):
    preset = dataclasses.replace(
        PRESETS["digits"], radius=20.0, gradient_radii=(2.0, 2.0), decay=True, first_temperature=4.0, lr=0.08, epochs=25
    )
    torch.manual_seed(0)
    trainer = preset.trainer(load("digits"), target_epsilon=8.0, target_delta=1e-5, seed=0, progress=False)
    trainer.fit()
    assert trainer.get_epsilon() <= 8.0
    assert trainer.evaluate()["accuracy"] > 0.85
    layers = [m for m in trainer.model.modules() if isinstance(m, dn.BoundedLinear)]
    assert [layer.radius for layer in layers] == [2.0, 2.0]
    for layer in layers:  # still orthogonal, so the certificate is the weights' own
        values = torch.linalg.svdvals(layer.weight.detach().double())
        assert float(values.max()) <= 1 + 1e-4
