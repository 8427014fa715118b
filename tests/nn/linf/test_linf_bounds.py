"""l-infinity layers: gradients need no bound on the input, and values lie in their intervals."""

import itertools
import math
from math import inf

import pytest
import torch
from helpers.linf_models import LOSS, NETS, built, corners, small
from torch import Tensor, nn

import dplip
import dplip.nn as dn
from dplip.certificates.intervals import Boxes
from dplip.errors import ConfigurationError, UnboundedOperationError
from dplip.losses import ClippedHinge
from dplip.propagation import Walk


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("p", [8.0, inf])
def test_the_gradient_needs_no_bound_on_the_input(mode, p):
    """One example's gradient stays within its sensitivity, for inputs of every size; the input bound is infinite."""
    model = small().train(mode == "train")
    dn.relax(model, p)
    sens = dplip.sensitivity(model, LOSS, (12,))  # raises UnboundedInputError if anything needed a bound
    c = 1 / 0.5 + 0.3 * 4.0
    assert all(math.isfinite(v) for v in sens.values()) and max(sens.values()) <= 2 * c * (1 + 1e-4)
    for scale, seed in itertools.product([0.0, 0.1, 1.0, 100.0, 1e30], range(3)):
        torch.manual_seed(seed)
        x = scale * torch.randn(1, 12)
        model.zero_grad()
        LOSS(model(x), torch.tensor([seed])).backward()
        for name, p_ in model.named_parameters():
            assert float(p_.grad.norm()) <= sens[name]


def test_removing_one_example_moves_the_sum_by_at_most_the_sensitivity():
    model = small().eval()
    sens = dplip.sensitivity(model, LOSS, (12,))
    x, y = torch.randn(20, 12), torch.randint(5, (20,))

    def summed(rows: slice) -> list[Tensor]:
        return torch.autograd.grad(LOSS(model(x[rows]), y[rows]), list(model.parameters()))

    whole, less = summed(slice(0, 20)), summed(slice(1, 20))
    for name, a, b in zip(sens, whole, less, strict=True):
        assert float((a - b).norm()) <= sens[name] + 1e-5


def test_a_bound_is_attained():
    """The first layer's weight gets the whole l1 norm of the loss's gradient when all points share a far coordinate."""
    model = nn.Sequential(dn.LInfDistance(4, 6, bias=False), dn.LInfDistance(6, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(0.01 * torch.randn(6, 4))
        model[1].weight.zero_()
        model[1].weight[:, 0] = torch.tensor([100.0, -100.0])
    loss = ClippedHinge(threshold=10.0, cross_entropy=0.0)
    sens = dplip.sensitivity(model, loss, (4,))
    x = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    z = model(x)
    loss(z, torch.tensor([int(z.argmax())])).backward()
    assert float(model[0].weight.grad.norm()) == pytest.approx(sens["0.weight"], rel=1e-3)


@pytest.mark.parametrize("bad", [1.0, 0.0, -8.0, math.nan])
def test_exponents_below_two_are_refused(bad):
    with pytest.raises(ConfigurationError, match="p="):
        dn.LInfDistance(3, 2, p=bad)
    with pytest.raises(ConfigurationError, match="p="):
        dn.relax(small(), bad)


def test_bad_arguments_are_refused():
    for build in (
        lambda: dn.LInfDistance(0, 2),
        lambda: dn.SortNetLinear(3, 2, rho=1.0),
        lambda: dn.SortNetLinear(3, 2, top=0),
        lambda: dn.LInfDistance2d(1, 2, 0),
        lambda: ClippedHinge(threshold=0.0),
        lambda: ClippedHinge(cross_entropy=-1.0),
        lambda: ClippedHinge(temperature=inf),
    ):
        with pytest.raises(ConfigurationError):
            build()
    with pytest.raises(UnboundedOperationError):
        dplip.propagate(Doubled(4, 2), (4,))


class Doubled(dn.LInfDistance):
    """Inherits a rule, for a forward that it changes."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("name", NETS)
def test_every_value_lies_in_its_interval(loops, name):
    model, shape = built(name)
    boxes = Boxes(Walk(model, shape))
    torch.manual_seed(0)
    for radius in (0.0, 1e-3, 0.1, 2.0):
        x = torch.rand(6, *shape)
        box = boxes(x.double() - radius, x.double() + radius)
        for moved in corners(x, torch.full((6,), radius)):
            with torch.no_grad():
                z = model(moved).double()
            assert bool((box.lower <= z).all() and (z <= box.upper).all())
