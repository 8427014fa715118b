"""Examples do not mix: whatever makes one row's value or gradient depend on another is refused."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dplip
from dplip import Norms
from dplip import nn as dn
from dplip.errors import ConfigurationError, UnboundedOperationError
from dplip.losses import CrossEntropy, Huber, Loss
from dplip.runtime.mixing import close, mixes


class Front(nn.Module):
    """A fixed front end, of which autograd sees nothing."""

    def __init__(self, function) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(6, 6), function

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x), self.training)


def last_of_many(z: Tensor, training: bool) -> Tensor:
    return z + (len(z) > 3) * z.roll(1, 0)


MIXING = {
    "statistics": lambda z, training: (z - z.mean(0)) / (z.std(0, unbiased=False) + 1e-3),
    "a little of the mean": lambda z, training: z - 1e-6 * z.mean(0),
    "the largest": lambda z, training: z / (1 + z.abs().amax()),
    "a mean without NaN": lambda z, training: z - z.clamp(-3, 3).nanmean(0),
    "a neighbour": lambda z, training: z + z.roll(1, 0),
    "the last row alone": lambda z, training: torch.cat([z[:-1], z.sum(0, keepdim=True)]),
    "in large batches": last_of_many,
    "where a row is large": lambda z, training: z + (z.abs().max() > 100),
    "where a row is NaN": lambda z, training: z + bool(z.isnan().any()),
    "the place in the batch": lambda z, training: z + torch.arange(len(z))[:, None],
    "the batch size": lambda z, training: z / len(z),
    "a sort over the batch": lambda z, training: z.sort(0).values,
}


@pytest.mark.parametrize("how", MIXING)
def test_values_alone_show_that_any_row_mixes(how):
    assert mixes(lambda x: MIXING[how](x, False).detach(), [torch.randn(7, 6, generator=torch.Generator())])


@pytest.mark.parametrize("how", MIXING)
def test_a_front_end_without_gradients_that_mixes_examples_is_refused(how):
    model = nn.Sequential(dn.Frozen(Front(MIXING[how])), dn.BallProjection(1.0), nn.Linear(6, 3))
    with pytest.raises(UnboundedOperationError, match="depend on another"):
        dplip.sensitivity(model, CrossEntropy(), (6,))


def test_one_that_treats_each_row_by_itself_is_taken():
    for function in (lambda z, training: z / (1 + z.abs().amax(1, keepdim=True)), lambda z, training: z * z.sign()):
        model = nn.Sequential(dn.Frozen(Front(function)), dn.BallProjection(1.0), nn.Linear(6, 3))
        assert dplip.sensitivity(model, CrossEntropy(), (6,)).total > 0


class Backward(torch.autograd.Function):
    """The identity, whose backward pass divides by the largest row's norm."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, v):
        return v / v.flatten(1).norm(dim=1).max().clamp_min(1e-6)


class Relative(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "backward":
            return Backward.apply(x)
        return x - x.mean(0) if self.training else x


@pytest.mark.parametrize("how", ["backward", "training"])
def test_a_rule_does_not_make_up_for_mixing(how, rules_as_before):
    @dplip.rule(Relative)
    def relative(module: Relative, x: Norms) -> tuple[Norms, Any]:
        return x, lambda v: ((v,), {})

    model = nn.Sequential(dn.BallProjection(1.0), nn.Linear(3, 3), Relative(how))
    with pytest.raises(UnboundedOperationError, match="depend on another"):
        dplip.sensitivity(model.train(), CrossEntropy(), (3,))
    if how == "training":
        assert dplip.sensitivity(model.eval(), CrossEntropy(), (3,)).total > 0


def test_masks_that_go_by_the_place_are_no_mixing():
    model = nn.Sequential(dn.BallProjection(1.0), nn.Linear(6, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3)).train()
    assert dplip.sensitivity(model, CrossEntropy(), (6,)).total > 0


# ------------------------------------------------------------------------------------------------------ losses


class Custom(CrossEntropy):
    def __init__(self, function) -> None:
        super().__init__(normalize=True)
        self.function = function

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.function(super().per_example, outputs, targets)


LOSSES = {
    "centred scores": lambda f, o, t: f(o - o.mean(0), t),
    "weights by class": lambda f, o, t: f(o, t) / t.bincount(minlength=3)[t],
    "the hardest": lambda f, o, t: f(o, t) * (f(o, t) == f(o, t).max()),
    "contrast": lambda f, o, t: f(o, t) + 0.1 * (o @ o.T).softmax(1).diagonal(),
    "batch size": lambda f, o, t: f(o, t) / len(o),
    "focus on outliers": lambda f, o, t: f(o, t) * (1 + (o.abs().max() > 1e3)),
    "one number": lambda f, o, t: f(o, t).sum(),
}


@pytest.mark.parametrize("how", LOSSES)
def test_a_loss_that_looks_at_the_batch_is_refused(how):
    model = nn.Sequential(dn.BallProjection(1.0), nn.Linear(6, 3))
    with pytest.raises(ConfigurationError, match="others of its batch"):
        dplip.sensitivity(model, Custom(LOSSES[how]), (6,))


def test_a_regression_that_looks_at_the_other_targets_is_refused():
    class Scaled(Huber):
        def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return super().per_example(outputs, targets - targets.mean(0))

    model = nn.Sequential(dn.BallProjection(1.0), nn.Linear(6, 2))
    with pytest.raises(ConfigurationError, match="others of its batch"):
        dplip.sensitivity(model, Scaled(), (6,))


def test_a_loss_of_targets_of_its_own_says_which_it_takes():
    class Weighted(CrossEntropy):
        """Class numbers, and a public weight for each example."""

        def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return super().per_example(outputs, targets[:, 0].long()) * targets[:, 1].clamp(0, 1)

    class Told(Weighted):
        def sample_targets(self, outputs: Tensor) -> Tensor:
            return torch.stack([super().sample_targets(outputs), torch.ones(len(outputs))], 1)

    model = nn.Sequential(dn.BallProjection(1.0), nn.Linear(6, 3))
    with pytest.raises(ConfigurationError, match="sample_targets"):
        dplip.sensitivity(model, Weighted(), (6,))
    assert dplip.sensitivity(model, Told(), (6,)).total > 0


@pytest.mark.parametrize("outputs", [1, 2, 10])
@pytest.mark.parametrize("name", [n for n in dir(dplip.losses) if isinstance(getattr(dplip.losses, n), type)])
def test_our_own_losses_treat_each_example_by_itself(name, outputs):
    cls = getattr(dplip.losses, name)
    if not issubclass(cls, Loss) or cls in (Loss, dplip.losses.regression._Regression):
        return
    if name in ("ELBO", "Heads", "PerExample"):  # tests/losses/test_several_outputs.py
        return
    if (name == "BinaryCrossEntropy") != (outputs == 1) and name not in ("Huber", "ClippedMSE", "Hinge"):
        return
    dplip.losses.base.require_separate(cls(), (outputs,), torch.zeros(1))


def test_rows_are_close_in_what_is_not_finite_too():
    a = torch.tensor([1.0, math.nan, math.inf])
    assert close(a, a.clone(), 0.0)
    assert not close(a, torch.tensor([1.0, 0.0, math.inf]), 1.0)
    assert not close(a, torch.tensor([1.0, math.nan, -math.inf]), 1.0)
    assert not close(torch.zeros(2), torch.zeros(2).double(), 1.0)
    assert not close(torch.tensor([1e-9]), torch.tensor([2e-9]), 0.1)


def test_the_random_state_is_left_alone():
    before = torch.get_rng_state()
    assert not mixes(lambda x: torch.nn.functional.dropout(x, 0.5), [torch.ones(6, 3)], alone=False)
    assert torch.equal(before, torch.get_rng_state())


class TargetsMixed(dplip.losses.CrossEntropy):
    def forward(self, outputs, targets, reduction="sum"):
        return super().forward(outputs, (targets + targets[:1]) % 4, reduction)


def test_a_loss_with_a_forward_of_its_own_is_refused():
    """What is probed is per_example: 200 examples may take the first one's target otherwise."""
    model = nn.Sequential(dplip.nn.BallProjection(1.0), nn.Linear(6, 4))
    with pytest.raises(dplip.ConfigurationError, match="forward of its own"):
        dplip.sensitivity(model, TargetsMixed(), (6,))
