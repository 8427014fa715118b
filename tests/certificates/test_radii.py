"""Radii: no attack succeeds inside one, and one is claimed only where there is a prediction."""

import copy
import math

import pytest
import torch
from helpers.models import MODELS, Standardized, built, orthogonal, plain
from helpers.norms import NORMS, every_norm
from torch import Tensor, nn

import dplip
from dplip.certificates import (
    predictions,
)

DUAL = {1: math.inf, 2: 2, math.inf: 1}


class Squeezed(nn.Module):
    """Gives its one score without an axis for it."""

    def __init__(self, scores: nn.Module) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(x).squeeze(1)


def project_onto_ball(move: Tensor, radius: Tensor, norm: float) -> Tensor:
    size = torch.linalg.vector_norm(move, norm, 1, keepdim=True)
    return move * (radius[:, None] / size.clamp_min(1e-30)).clamp_max(1.0)


def attack(model: nn.Module, x: Tensor, radius: Tensor, norm: float, steps: int = 15) -> Tensor:
    """Which examples change their prediction: ascent towards every other class, strictly within the ball."""
    radius = 0.999 * radius.to(x.dtype)
    scores = model(x).detach()
    before = predictions(scores)
    changed = torch.zeros(len(x), dtype=torch.bool)
    for shift in range(1, max(2, scores.reshape(len(x), -1).shape[1])):
        move = torch.zeros(len(x), x[0].numel())
        for step in range(steps):
            move.requires_grad_()
            z = model(x + move.reshape(x.shape)).reshape(len(x), -1)
            if z.shape[1] == 1:
                height = torch.where(before > 0, -z[:, 0], z[:, 0])
            else:
                rival = (before + shift) % z.shape[1]
                height = (z.gather(1, rival[:, None]) - z.gather(1, before[:, None]))[:, 0]
            (slope,) = torch.autograd.grad(height.sum(), move)
            if norm == math.inf:
                climb = slope.sign()
            elif norm == 2:
                climb = slope / slope.norm(dim=1, keepdim=True).clamp_min(1e-30)
            else:  # a vertex of the ball, or the mean of a few
                best = slope.abs().topk(min(1 + step % 3, slope.shape[1]), dim=1).indices
                climb = torch.zeros_like(slope).scatter(1, best, slope.gather(1, best).sign())
            pace = 1.0 if step < 2 else 0.4
            move = project_onto_ball(move.detach() + pace * radius[:, None] * climb, radius, norm)
            changed |= predictions(model(x + move.reshape(x.shape)).detach()) != before
    return changed


@every_norm
def test_no_attack_succeeds_inside_a_radius_of_a_trained_model(digits, norm):
    model, x, _ = digits
    certified = dplip.certify(model, x, norm)
    assert float((certified > 0).float().mean()) > 0.95
    assert not attack(model, x, certified, norm).any()


def test_the_attack_is_strong_enough_to_break_what_is_not_certified(digits):
    """Without this the test above could pass with any radius."""
    model, x, _ = digits
    for norm, factor in ((2, 2.0), (math.inf, 4.0), (1, 8.0)):
        assert float(attack(model, x, factor * dplip.certify(model, x, norm), norm).float().mean()) > 0.5


@pytest.mark.parametrize("name", MODELS)
@every_norm
def test_no_attack_succeeds_inside_a_radius_of_a_random_model(name, norm):
    model, shape = built(name, seed=2, gain=3.0)
    model.eval()
    x = torch.randn(30, *shape, generator=torch.Generator().manual_seed(0))
    x[:15] *= 0.3  # inside the ball, and then outside
    x[15:] *= 3.0
    certified = dplip.certify(model, x, norm)
    assert (certified[:15] > 0).any() and (certified[15:] > 0).any()
    assert not attack(model, x, certified, norm, steps=5).any()


@every_norm
@pytest.mark.parametrize("shape", ["(batch, 1)", "(batch,)"])
def test_one_output_is_a_binary_classifier_by_its_sign(norm, shape):
    torch.manual_seed(0)
    model: nn.Module = orthogonal(6, 8, 1)
    if shape == "(batch,)":
        model = Squeezed(model)
    x = torch.randn(200, 6)
    certified = dplip.certify(model, x, norm)
    assert certified.shape == (200,)
    assert not attack(model, x, certified, norm).any()
    if norm == 2:
        torch.testing.assert_close(certified, model(x).detach().abs().reshape(200).double(), rtol=1e-4, atol=2e-5)


@every_norm
def test_the_certificate_of_a_linear_model_is_its_distance_to_the_decision_boundary(norm):
    torch.manual_seed(0)
    model, x = nn.Linear(6, 4), torch.randn(100, 6)
    z = model(x).double()
    gaps = z.max(1).values[:, None] - z
    rows = model.weight.detach().double()
    slopes = torch.linalg.vector_norm(rows[z.argmax(1)][:, None] - rows, DUAL[norm], -1)
    exact = torch.where(gaps > 0, gaps / slopes, math.inf).min(1).values.detach()
    certified = dplip.certify(model, x, norm)
    assert (certified <= exact).all()
    torch.testing.assert_close(certified, exact, rtol=1e-3, atol=1e-4)
    broken = attack(model, x, 1.01 * exact, norm)
    assert broken.float().mean() > 0.95  # the same attack finds the boundary just outside


def foolbox_attacks():
    foolbox = pytest.importorskip("foolbox")
    return foolbox, {
        "l2 PGD": (2, foolbox.attacks.L2ProjectedGradientDescentAttack(steps=20)),
        "linf PGD": (math.inf, foolbox.attacks.LinfProjectedGradientDescentAttack(steps=20)),
        "l2 DDN": (2, foolbox.attacks.DDNAttack(steps=40)),
    }


@pytest.mark.parametrize("name", ["l2 PGD", "linf PGD", "l2 DDN"])
def test_no_foolbox_attack_succeeds_inside_a_radius(digits, name):
    foolbox, attacks = foolbox_attacks()
    norm, attacker = attacks[name]
    model, x, _ = digits
    certified = dplip.certify(model, x, norm)
    victim = foolbox.PyTorchModel(model, bounds=(-1.0, 2.0), device="cpu")
    before = model(x).argmax(1)
    levels = [None] if name == "l2 DDN" else certified.quantile(torch.tensor([0.2, 0.5, 0.8]).double()).tolist()
    for level in levels:
        _, moved, succeeded = attacker(victim, x, before, epsilons=level)
        distance = torch.linalg.vector_norm((moved - x).double().flatten(1), norm, 1)
        succeeded &= model(moved).argmax(1) != before
        assert (distance[succeeded] >= certified[succeeded] * (1 - 1e-6)).all()
    if name == "l2 DDN":  # it looks for the nearest example of another class, so it shows how loose a radius is
        assert succeeded.float().mean() > 0.9
        assert float((distance / certified)[succeeded].median()) < 2


@every_norm
def test_tied_scores_have_radius_zero(norm):
    model = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 0, 1.0]]))
    certified = dplip.certify(model, torch.tensor([[1.0, 0, 0], [0, 0, 1.0], [0, 0, 0]]), norm)
    assert certified[0] == 0 and certified[1] > 0 and certified[2] == 0


@pytest.mark.parametrize("value, norm", [(math.nan, 2), (math.inf, 2), (-math.inf, 1), (math.nan, math.inf)])
def test_an_input_that_is_not_finite_has_radius_zero(value, norm):
    """Also where a ball projection makes the scores finite: nothing is at a finite distance from such an input."""
    x = torch.randn(3, 6)
    x[1, 2] = value
    for model in (orthogonal(), plain(), nn.Linear(6, 4), orthogonal(classes=1)):
        certified = dplip.certify(model, x, norm)
        assert certified[1] == 0 and certified[0] > 0 and certified[2] > 0


def test_scores_that_are_not_finite_have_radius_zero():
    """An overflow, which the exact scores do not have."""
    model = nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1e19, 0], [0, 1.0], [1.0, 0]]))
    x = torch.tensor([[1e20, 1.0], [1.0, 1e20], [-1e20, 1.0], [1.0, 0.0]])
    assert dplip.certify(model, x).gt(0).tolist() == [False, False, False, True]
    alone = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        alone.weight.copy_(model.weight[:1])
    assert dplip.certify(alone, torch.tensor([[1e20, 1.0], [1.0, 1.0]])).gt(0).tolist() == [False, True]


def test_what_is_certified_does_not_hang_on_rounding_where_large_terms_cancel():
    """Scores near 0 that are sums of many large terms: their rounding is that of the terms, not of the score."""
    torch.manual_seed(0)
    model = nn.Linear(1000, 2)
    direction = torch.randn(1000)
    with torch.no_grad():
        model.weight.copy_(torch.stack((direction, -direction)))
        model.bias.zero_()
    x = torch.rand(4000, 1000)
    x -= (x @ direction)[:, None] * direction / direction.square().sum()
    certified = dplip.certify(model, x) > 0
    exact = copy.deepcopy(model).double()(x.double()).argmax(1)
    alone = torch.cat([model(row[None]).argmax(1) for row in x[:1000]])
    assert not (certified & (model(x).argmax(1) != exact)).any()
    assert not (certified[:1000] & (model(x[:1000]).argmax(1) != alone)).any()


def test_the_pair_of_classes_counts_and_not_only_the_worst_pair():
    """Two classes with nearly the same weights are hard to tell apart, but also slow to change places."""
    torch.manual_seed(0)
    model = orthogonal(6, 8, 4)
    with torch.no_grad():
        model[3].weight[1] = 0.9 * model[3].weight[0]
    x = torch.randn(300, 6)
    pairwise, anyhow = dplip.certify(model, x), dplip.certify(nn.Sequential(model, nn.Flatten()), x)
    assert (pairwise >= anyhow * (1 - 1e-5)).all()
    assert float((pairwise / anyhow.clamp_min(1e-9)).max()) > 3
    assert not attack(model, x, pairwise, 2).any()


@every_norm
def test_radii_are_in_raw_pixels_where_dividing_by_a_standard_deviation_is_part_of_the_model(norm):
    """Regression of a published certificate that divided by the largest standard deviation."""
    torch.manual_seed(0)
    mean, std = torch.rand(3, 1, 1), torch.tensor([0.1, 0.2, 0.5]).reshape(3, 1, 1)
    model = nn.Sequential(Standardized(mean, std), nn.Flatten(), nn.Linear(12, 4))
    x = torch.rand(100, 3, 2, 2)
    certified = dplip.certify(model, x, norm)
    assert (certified > 0).all()
    assert not attack(model, x, certified, norm).any()
    same = nn.Sequential(Standardized(mean, torch.full_like(std, 0.2)), nn.Flatten(), model[2])
    unscaled = dplip.certify(model[2], same[:2](x), norm)
    torch.testing.assert_close(dplip.certify(same, x, norm), 0.2 * unscaled, rtol=1e-3, atol=1e-4)


def test_radii_grow_from_linf_to_l2_to_l1(digits):
    model, x, _ = digits
    one, two, infinity = (dplip.certify(model, x, norm) for norm in NORMS)
    assert (one >= two).all() and (two >= infinity).all()
