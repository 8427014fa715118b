"""Certificates by intervals: never looser than the margin, and no attack succeeds inside."""

import math
from math import inf

import pytest
import torch
from helpers.linf_models import NETS, built, corners, small
from torch import Tensor, nn

import dplip
import dplip.nn as dn
from dplip.certificates import Certifier, predictions
from dplip.certificates.articulation import articulation_points
from dplip.certificates.hybrid import HybridBound
from dplip.certificates.intervals import Boxes
from dplip.certificates.radii import seeds
from dplip.errors import UnboundedOperationError
from dplip.propagation import Walk
from dplip.runtime.mode import evaluation


@pytest.mark.parametrize("name", NETS)
def test_intervals_are_never_looser_than_the_margin_and_no_attack_succeeds_inside(name):
    model, shape = built(name)
    torch.manual_seed(0)
    x = torch.rand(24, *shape)
    with evaluation(model), torch.no_grad():
        certifier = Certifier(model, shape, inf)
        assert certifier.boxes is not None
        both = certifier.radii(x, model(x))
        certifier.hybrid = None
        boxes = certifier.radii(x, model(x))
        certifier.boxes = None
        margin = certifier.radii(x, model(x))
    assert bool((both >= boxes - 2**-12).all() and (boxes >= margin).all()) and float(both.max()) > 0
    before = predictions(model(x).detach())
    for moved in ascended(model, x, both):
        assert torch.equal(predictions(model(moved).detach()), before)


def test_intervals_up_to_a_point_and_norms_from_there_certify_more_than_either():
    model, shape = built("windows")
    torch.manual_seed(0)
    x = torch.rand(64, *shape).round()  # pixels at the ends of their range, which a small change does not move
    with evaluation(model), torch.no_grad():
        certifier = Certifier(model, shape, inf)
        assert certifier.hybrid
        both = certifier.radii(x, model(x))
        certifier.hybrid = None
        boxes = certifier.radii(x, model(x))
    assert float(both.mean()) > 1.1 * float(boxes.mean())
    assert not Certifier(small().eval(), (12,), inf).hybrid  # pure l-infinity: nothing to be had from a norm


def test_articulation_points_are_what_all_later_values_pass_through():
    model, shape = built("branches")
    walk = Walk(model, shape)
    assert [call.node.name for call in walk.calls()] == [
        "clamp", "model_one", "abs_1", "model_two", "relu", "add", "model_head"
    ]  # fmt: skip
    assert [node.name for node in articulation_points(walk)] == ["clamp", "add"]


@pytest.mark.parametrize("name", ["windows", "branches", "convolutional", "residual"])
def test_no_score_moves_further_than_the_hybrid_bound_allows(name):
    """The claim itself, at every articulation point: differences of scores change by at most slope times change."""
    model, shape = built(name)
    walk = Walk(model, shape)
    boxes, held = Boxes(walk), HybridBound(walk, seeds(walk), 3)
    assert held
    torch.manual_seed(0)
    x, r = torch.rand(8, *shape), torch.full((8,), 0.15)
    z = model(x).detach().double()
    perturbed, nominal = boxes.around(x, r), boxes.values(x, x)
    worst = torch.zeros(8, 3, dtype=torch.float64)
    for at in [*corners(x, r, 300), *ascended(model, x, r)]:
        change = z - model(at).detach().double()
        for y in range(3):
            worst[:, y] = torch.maximum(worst[:, y], (change[:, y, None] - change).amax(1))
    for y in range(3):
        top = torch.full((8,), y)
        # Were the gap to every rival what was reached, the bound must not claim that it holds.
        claimed = held.holds(perturbed, nominal, worst[:, y, None].expand(8, 3) - 1e-5, top)
        assert not bool(claimed.any())


def ascended(model: nn.Module, x: Tensor, radius: Tensor) -> list[Tensor]:
    """Corners, and ascent by the sign of the gradient towards every other class, inside each radius."""
    found = list(corners(x, radius.clamp_max(10.0), 20))
    r = 0.9999 * radius.clamp_max(10.0).to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    z = model(x).detach().reshape(len(x), -1)
    for shift in range(1, max(2, z.shape[1])):
        at = x.clone()
        for _ in range(8):
            at = at.detach().requires_grad_()
            s = model(at).reshape(len(x), -1)
            own = z.argmax(1)
            rival = (own + shift) % max(z.shape[1], 1)
            if z.shape[1] == 1:
                height = -s[:, 0] * z[:, 0].sign()
            else:
                height = (s.gather(1, rival[:, None]) - s.gather(1, own[:, None]))[:, 0]
            (slope,) = torch.autograd.grad(height.sum(), at)
            at = torch.minimum(torch.maximum(at.detach() + 0.5 * r * slope.sign(), x - r), x + r)
            found.append(at)
    return found


def test_what_has_no_interval_rule_falls_back_on_the_margin():
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 3)).eval()
    with pytest.raises(UnboundedOperationError, match="interval"):
        Boxes(Walk(model, (4,)))
    assert dplip.certify(model, torch.randn(3, 4), norm=inf).shape == (3,)
    relaxed = small().eval()
    dn.relax(relaxed, 8.0)
    assert bool((dplip.certify(relaxed, torch.randn(3, 12), norm=inf) >= 0).all())


def test_certificates_of_unusual_inputs():
    model = small().eval()
    x = torch.tensor([[math.nan] * 12, [inf] * 12, [1e30] * 12, [0.0] * 12])
    radii = dplip.certify(model, x, norm=inf)
    assert float(radii[0]) == float(radii[1]) == 0.0 and bool((radii >= 0).all())
    assert dplip.certify(model, torch.zeros(0, 12), norm=inf).shape == (0,)
