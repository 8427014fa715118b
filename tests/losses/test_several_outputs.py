"""Losses of several outputs and of one's own: their structure, what they refuse, and what a monitor is told."""

import math
from collections import OrderedDict
from typing import Any

import pytest
import torch
from helpers.losses import CASES, Joint, build, every_case, quartic
from torch import nn

import dplip
from dplip.errors import ConfigurationError
from dplip.losses import ELBO, BinaryCrossEntropy, ClippedMSE, CrossEntropy, Heads, Huber, Loss, PerExample
from dplip.losses.base import require_separate
from dplip.losses.structure import shapes
from dplip.norms import Norms

Y = {"class": torch.tensor([0, 2, 1]), "value": torch.randn(3, 2)}


def outputs_of() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    sizes = {"class": 3, "value": 2, "unused": 4}
    return {k: torch.randn(3, n, generator=generator).requires_grad_() for k, n in sizes.items()}


def two(**options) -> Heads:
    return Heads({"class": CrossEntropy(), "value": (Huber(), 0.5)}, **options)


@every_case
def test_every_loss_is_seen_to_treat_each_example_by_itself(case):
    loss = build(case)
    if isinstance(loss, Joint):
        require_separate(loss.loss, loss.shape, torch.zeros(1))
    else:
        require_separate(loss, CASES[case][2], torch.zeros(1))


def test_heads_take_dicts_and_tuples_and_leave_the_rest():
    z = outputs_of()
    expected = CrossEntropy()(z["class"], Y["class"]) + 0.5 * Huber()(z["value"], Y["value"])
    torch.testing.assert_close(two()(z, Y), expected)
    torch.testing.assert_close(two()(OrderedDict(z), Y), expected)
    places = Heads({0: CrossEntropy(), 1: (Huber(), 0.5)})
    for kind in (tuple, list):
        torch.testing.assert_close(places(kind(z.values()), kind(Y.values())), expected)
    named = Heads({"class": CrossEntropy(), "value": (Huber(), 0.5)}, targets={"value": "y"})
    torch.testing.assert_close(named(z, {"class": Y["class"], "y": Y["value"]}), expected)
    two()(z, Y).backward()
    assert z["class"].grad is not None and z["value"].grad is not None and z["unused"].grad is None


def test_the_bound_is_that_of_all_heads_together():
    z = outputs_of()
    (1e3 * two(max_gradient=0.1)(z, Y)).backward()
    rows = torch.cat([z["class"].grad, z["value"].grad], 1)
    torch.testing.assert_close(rows.norm(dim=1), torch.full((3,), 0.1), rtol=1e-5, atol=0)
    stated = two().gradient_norms({"class": (3,), "value": (2,)})
    assert stated.l2 == pytest.approx(math.sqrt(2 + 0.25 * 2)) and stated.linf == 1 and stated.l1 == 3


def test_one_head_that_is_not_finite_sends_nothing_and_the_others_send_theirs():
    z = outputs_of()
    with torch.no_grad():
        z["class"][1] = math.nan
    two()(z, Y).backward()
    assert z["class"].grad.flatten(1).any(1).tolist() == [True, False, True]
    assert z["value"].grad.isfinite().all() and z["value"].grad.flatten(1).any(1).all()


def test_heads_may_be_of_different_types_and_hold_heads():
    z = outputs_of()
    z["class"] = z["class"].detach().bfloat16().requires_grad_()
    nested = Heads({"both": (two(), 2.0), "other": ClippedMSE()})
    nested({"both": z, "other": z["unused"]}, {"both": Y, "other": torch.zeros(3, 4)}).backward()
    assert z["class"].grad.dtype == torch.bfloat16
    torch.testing.assert_close(z["value"].grad, (z["value"].detach() - Y["value"]).clamp(-1, 1), rtol=1e-5, atol=1e-6)


def test_an_autoencoder_compares_images_with_its_inputs():
    x, r = torch.rand(4, 1, 6, 6), torch.randn(4, 1, 6, 6)
    for loss in (ClippedMSE(), Huber(), BinaryCrossEntropy(within="sum")):
        assert loss(r, x, reduction="none").shape == (4,)
        require_separate(loss, (1, 6, 6), torch.zeros(1))
    latent = torch.zeros(4, 2)
    torch.testing.assert_close(ELBO(ClippedMSE(), 1.0)((r, latent, latent), x), ClippedMSE()(r, x))
    far = ELBO(ClippedMSE(), 1.0)((r, latent + 2, latent), x)
    torch.testing.assert_close(far, ClippedMSE()(r, x) + 4 * 4)


class Told:
    """A monitor of several outputs."""

    def __init__(self, outputs):
        self.outputs, self.sent = outputs, []

    def is_model_output(self, outputs):
        return any(outputs is z for z in self.outputs)

    def on_gradients(self, gradients, of_model, shape):
        self.sent.append((gradients, shape, of_model))

    def on_reweighting(self):
        raise AssertionError


def test_a_monitor_is_told_the_gradients_of_all_outputs_at_once():
    z, loss = outputs_of(), two()
    told: Any = Told(list(z.values()))
    loss.monitor = told
    loss(z, Y).backward()
    loss({**z, "value": z["value"] * 1}, Y).backward()  # one of them is not the model's
    assert [of_model for *_, of_model in told.sent] == [True, False]
    assert told.sent[0][1] == {"class": (3,), "value": (2,)}
    assert [g.shape for g in told.sent[0][0]] == [(3, 3), (3, 2)]


def test_a_loss_of_ones_own_trains_like_any_other():
    def absolute(outputs, targets):
        return (outputs[:, 0] - targets).abs()

    model = nn.Sequential(dplip.nn.BallProjection(1.0), nn.Linear(4, 1))
    loss = PerExample(absolute, 0.5, lambda z: torch.randn(len(z)))
    assert dplip.sensitivity(model, loss, (4,))["1.bias"] == pytest.approx(0.5, rel=1e-4)
    assert PerExample(absolute, 0.5, normalize=True).gradient_norms((1,)).l2 == 0.5


def centred(z, y):
    return quartic(z - z.mean(0), y)


def batch_weight(z, y):
    return quartic(z, y) / len(z)


@pytest.mark.parametrize("function", [centred, batch_weight])
def test_a_function_that_mixes_examples_is_refused(function):
    with pytest.raises(ConfigurationError, match="depends on the others"):
        require_separate(PerExample(function, 1.0), (3,), torch.zeros(1))


class OverHeads(Loss):
    """The second output is centred over the batch."""

    def select(self, outputs):
        return outputs

    def per_example(self, outputs, targets):
        first, second = outputs
        return quartic(first, targets) + (second - second.mean(0)).square().sum(1)

    def sample_targets(self, outputs):
        return torch.zeros_like(outputs[0])

    def logit_gradient(self, shape):
        return Norms((5,))


def test_a_loss_whose_second_output_mixes_is_refused():
    with pytest.raises(ConfigurationError, match="depends on the others"):
        require_separate(OverHeads(1.0), ((2,), (3,)), torch.zeros(1))


def test_a_function_of_several_outputs_needs_targets_for_the_probe():
    def total(outputs, targets):
        return sum(z.flatten(1).sum(1) for z in outputs.values()) * targets

    z = {k: v for k, v in outputs_of().items() if k != "unused"}
    with pytest.raises(ConfigurationError, match="sample_targets=None"):
        require_separate(PerExample(total, 1.0), shapes(z), torch.zeros(1))
    told = PerExample(total, 1.0, lambda z: torch.ones(len(z["class"])))
    require_separate(told, shapes(z), torch.zeros(1))
    told(z, torch.ones(3)).backward()
    rows = torch.cat([z["class"].grad, z["value"].grad], 1)
    torch.testing.assert_close(rows, torch.full((3, 5), 5**-0.5), rtol=1e-5, atol=0)


WRONG: Any = None
INPUT = Norms((2,), l2=1.0)
REFUSED = {
    "a model of one output": (
        lambda: dplip.sensitivity(nn.Linear(2, 3), two(), (2,), INPUT),
        "outputs hold no 'class'",
    ),
    "a batch mean": (lambda: PerExample(lambda z, y: z.mean(), 1.0)(torch.zeros(2, 3), torch.zeros(2)), "one number"),
    "no tensor": (lambda: PerExample(lambda z, y: WRONG, 1.0)(torch.zeros(2, 3), torch.zeros(2)), "type NoneType"),
    "no function": (lambda: PerExample(WRONG, 1.0), "function=None"),
    "no bound": (lambda: PerExample(quartic, WRONG), "max_gradient=None"),
    "no outputs": (lambda: PerExample(quartic, 1.0)({}, torch.zeros(2)), "tensors"),
    "a text among outputs": (lambda: PerExample(quartic, 1.0)({"a": "b"}, torch.zeros(2)), "type str"),
    "whole outputs": (lambda: PerExample(quartic, 1.0)((torch.zeros(2).long(),), torch.zeros(2)), "floating-point"),
    "no heads": (lambda: Heads({}), "at least one"),
    "a head that is no loss": (lambda: Heads({"a": WRONG}), "give a loss"),
    "a target of no head": (lambda: Heads({"a": Huber()}, targets={"b": "c"}), "name targets"),
    "a weight of 0": (lambda: Heads({"a": (CrossEntropy(), 0.0)}), "weight of 0"),
    "one tensor for heads": (lambda: two()(torch.zeros(3, 5), Y), "hold no 'class'"),
    "a missing output": (lambda: two()({"class": torch.zeros(3, 3)}, Y), "hold no 'value'"),
    "a missing target": (lambda: two()(outputs_of(), {"class": Y["class"]}), "targets hold no 'value'"),
    "a wrong target": (
        lambda: two()(outputs_of(), {**Y, "class": Y["class"] + 1}),
        "head 'class': .*labels are 0",
    ),
    "another length": (lambda: two()(outputs_of(), {**Y, "value": torch.zeros(2, 2)}), "of 3 and of 2"),
    "no tuple of three": (lambda: ELBO(Huber(), 1.0)(torch.zeros(2, 3), torch.zeros(2, 3)), "log-variance"),
    "two shapes of latents": (
        lambda: ELBO(Huber(), 1.0)((torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 1)), torch.zeros(2, 3)),
        "equal shapes",
    ),
    "no bound of the divergence": (lambda: ELBO(Huber(), WRONG), "max_gradient=None"),
    "no reconstruction": (lambda: ELBO(WRONG, 1.0), "give a loss"),
    "a negative beta": (lambda: ELBO(Huber(), 1.0, beta=-1.0), "beta=-1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_in_words(name):
    make, named = REFUSED[name]
    with pytest.raises(ConfigurationError, match=named):
        make()


def test_measures_of_heads_go_by_their_names():
    z = {"class": torch.eye(3), "value": torch.zeros(3, 2)}
    found = two().measures(z, {"class": torch.tensor([0, 1, 1]), "value": torch.ones(3, 2)})
    assert {name: values.tolist() for name, values in found.items()} == {
        "class.accuracy": [1, 1, 0],
        "value.mse": [2, 2, 2],
    }
