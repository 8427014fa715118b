"""Roundings that are allowed for cover those that are seen, and no input within a radius changes sides by one."""

import copy
import math

import pytest
import torch
from helpers.norms import NORMS
from torch import Tensor, nn

import dplip
import dplip.nn as dn
from dplip.certificates import (
    Certifier,
)
from dplip.errors import UnboundedOperationError
from dplip.runtime.mode import evaluation


def test_margins_within_the_rounding_of_a_score_are_not_certified():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        model.bias.copy_(torch.tensor([1e4, 1e4]))
    assert dplip.certify(model, torch.tensor([[1e-3, 0.0], [1.0, 0.0]])).gt(0).tolist() == [False, True]
    nn.init.zeros_(model.bias)
    assert dplip.certify(model, torch.tensor([[1e-3, 0.0], [1.0, 0.0]])).gt(0).all()


def grey_classifier(features: int, weight: float, difference: float) -> nn.Module:
    """Two classes with nearly the same weight for every pixel: which of them wins on a grey image is a matter of
    rounding."""
    model = nn.Sequential(nn.Linear(features, 2, bias=False)).eval()
    with torch.no_grad():
        model[0].weight[0].fill_(weight)
        model[0].weight[1].fill_(weight * (1 + difference))
    return model


@pytest.mark.parametrize("features", [3072, 49_152])
def test_no_grey_image_of_another_class_lies_within_a_radius_of_a_wide_layer(features):
    """Regression: with a slack that did not grow with the width, a radius of 969 with another class at 0.09."""
    greys = torch.linspace(0.5, 0.999, 60 if features > 4000 else 300)
    x = greys[:, None].expand(-1, features).contiguous()
    for weight in (0.7, 0.813, 0.21):
        for difference in (3e-7, 1e-6, 3e-6, 1e-5, 3e-5):
            model = grey_classifier(features, weight, difference)
            with torch.no_grad():
                found = [
                    torch.cat([model(row[None]) for row in x]),
                    model(x),
                    torch.cat([model(p) for p in x.split(7)]),
                ]
            for norm in NORMS:
                certified = dplip.certify(model, x[::10], norm)
                apart = torch.linalg.vector_norm((x[::10, None, :1] - x[None, :, :1]).double(), norm, 2)
                apart = apart * {1: features, 2: math.sqrt(features), math.inf: 1}[norm]
                for z in found:
                    other = z.argmax(1)[None] != found[0].argmax(1)[::10, None]
                    assert not (other & (apart < certified[:, None])).any()
    # and where the rounding does not decide, there is a radius
    assert dplip.certify(grey_classifier(features, 0.7, 0.1), x[:2]).gt(1e-2 * math.sqrt(features)).all()


WIDE = {
    "linear": (lambda: nn.Sequential(nn.Linear(2048, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(),
                                     nn.Linear(512, 3)), (2048,)),
    "convolutional": (lambda: nn.Sequential(nn.Conv2d(16, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Tanh(),
                                            nn.AvgPool2d(4), nn.Flatten(), nn.Linear(256, 3)), (16, 12, 12)),
    "fixed": (lambda: nn.Sequential(dn.Shift(0.3), dn.LowPass(28, 28, 20), dn.BallProjection(15.0), nn.Flatten(),
                                    dn.OrthogonalLinear(400, 128), dn.GroupSort(2), nn.Linear(128, 3)), (1, 28, 28)),
    "distances": (lambda: nn.Sequential(nn.Flatten(), dn.LInfDistance(64, 512), dn.LInfDistance(512, 3, negate=True)),
                  (64,)),
}  # fmt: skip


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_roundings_that_are_allowed_for_cover_those_that_are_seen(name, dtype):
    """At inputs within the distance, in batches of several sizes, of scores against those in twice as many digits."""
    builder, shape = WIDE[name]
    torch.manual_seed(0)
    model = builder().eval()
    if dtype == torch.float32:
        with torch.no_grad():
            model[-1].weight.add_(1.0)  # large terms
    model = model.to(dtype)
    x = torch.rand(12, *shape, dtype=dtype)
    certifier = Certifier(model, shape)
    with evaluation(model), torch.no_grad():
        _, sizes = certifier.rounding.at(x)
        radius = torch.full((12,), 0.5, dtype=torch.float64)
        top = torch.arange(12) % 3
        errors = certifier.rounding.errors(sizes, dplip.Norms(shape, l2=radius))
        allowed = certifier.rounding.of_scores(errors, top)
        move = torch.randn_like(x).flatten(1)
        near = x + (0.49 * move / move.norm(dim=1, keepdim=True)).reshape(x.shape)
        exact, _ = Certifier(copy.deepcopy(model).float(), shape).rounding.at(near.float())
        for batch in (1, 3, 12):
            z = torch.cat([model(part) for part in near.split(batch)]).double()
            if dtype == torch.float64:  # what float32 allows for is 2^29 times as much
                assert torch.allclose(allowed * 2.0**28, allowed_in_single(model, x, radius, top), rtol=0.3)
                continue
            seen = ((z.gather(1, top[:, None]) - z) - (exact.gather(1, top[:, None]) - exact)).abs()
            assert (seen <= allowed).all()
            assert name == "distances" or float((allowed[:, None] / seen[..., None].clamp_min(1e-9)).min()) < 1e4


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("norm", [2, math.inf])
def test_no_input_near_a_decision_boundary_changes_sides_within_its_radius(name, norm):
    """Where margins are of the size of the rounding, in batches of several sizes, on both sides of the boundary."""
    builder, shape = WIDE[name]
    torch.manual_seed(1)
    model = builder().eval()
    with torch.no_grad():
        model[-1].weight.add_(1.0)
        x = torch.rand(100, *shape)
        before = model(x).argmax(1)
        if len(before.unique()) < 2:  # the classes are brought together
            before_last = model[:-1](x).matmul(model[-1].weight.T) if name != "distances" else torch.zeros(1, 1)
            model[-1].bias.copy_(-before_last.mean(0))
            before = model(x).argmax(1)
        a, b = x[before == before.mode().values][:1], x[before != before.mode().values][:1]
        if not len(b):
            return
        for _ in range(22):  # bisection, down to where rounding decides
            middle = (a + b) / 2
            same = model(middle).argmax(1) == model(a).argmax(1)
            a, b = (middle, b) if same else (a, middle)
        steps = torch.linspace(-40, 40, 41)[:, None] * (b - a).flatten(1)
        line = a + steps.reshape(-1, *shape)
        certified = dplip.certify(model, line, norm)
        apart = torch.stack([torch.linalg.vector_norm((line - row).double().flatten(1), norm, 1) for row in line])
        for batch in (1, 7, 41):
            found = torch.cat([model(part).argmax(1) for part in line.split(batch)])
            assert not ((found[:, None] != found[None]) & (apart < certified[:, None])).any()


def allowed_in_single(model: nn.Module, x: Tensor, radius: Tensor, top: Tensor) -> Tensor:
    certifier = Certifier(copy.deepcopy(model).float(), tuple(x.shape[1:]))
    _, sizes = certifier.rounding.at(x.float())
    errors = certifier.rounding.errors(sizes, dplip.Norms(tuple(x.shape[1:]), l2=radius))
    return certifier.rounding.of_scores(errors, top) / certifier.rounding.share


class Branched(nn.Module):
    """Two branches that meet, of which only the second depends on the input."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(features, 8), nn.Linear(features, 8), nn.Linear(8, 2)
        nn.init.zeros_(self.first.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.first(x) + self.second(x)))


def test_the_rounding_of_an_input_further_out_is_larger():
    model = grey_classifier(512, 0.7, 0.1)
    certifier = Certifier(model, (512,))
    _, sizes = certifier.rounding.at(torch.full((2, 512), 0.5))
    moved = dplip.Norms((512,), l2=torch.tensor([0.0, 100.0]).double())
    still, far = certifier.rounding.of_scores(certifier.rounding.errors(sizes, moved), torch.zeros(2).long())[:, 1]
    assert float(far) > 8 * float(still) > 0
    # that either of two branches moves what follows them
    certifier = Certifier(Branched(512), (512,))
    _, sizes = certifier.rounding.at(torch.full((2, 512), 0.5))
    behind = {n: e for n, e in certifier.rounding.errors(sizes, moved).items() if "head" in str(n.target)}
    still, far = certifier.rounding.of_scores(behind, torch.zeros(2).long())[:, 1]
    assert len(behind) == 1 and float(far) > 5 * float(still) > 0
    # and a rounding on the way counts as often as the scores change with it
    steep = nn.Sequential(nn.Linear(512, 512, bias=False), nn.Linear(512, 2, bias=False))
    torch.manual_seed(0)
    with torch.no_grad():
        steep[0].weight.copy_(torch.eye(512))
        steep[1].weight.copy_(model[0].weight)
    errors = []
    for gain in (1.0, 100.0):
        with torch.no_grad():
            steep[1].weight[0].mul_(gain)
        certifier = Certifier(steep, (512,))
        _, sizes = certifier.rounding.at(torch.full((1, 512), 0.5))
        first = certifier.rounding.errors(sizes, dplip.Norms((512,), l2=torch.zeros(1).double()))
        one = {n: e for n, e in first.items() if "0" in str(n.target)}
        errors.append(float(certifier.rounding.of_scores(one, torch.zeros(1).long())[0, 1]))
    assert len(one) == 1 and errors[1] > 50 * errors[0]


def test_every_operation_with_a_rule_is_known_to_round_or_has_no_certificate():
    from dplip.rounding.registry import ROUNDINGS
    from dplip.rules.registry import registered

    assert not [f for f in registered() if f not in ROUNDINGS.rules and f.__module__.startswith(("dplip", "torch"))]


def test_an_operation_that_is_not_known_to_round_is_refused_by_name_until_it_is_said_how():
    class Halved(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 2

    dplip.rule(Halved)(lambda module, x: (x * 0.5, lambda v: ((v * 0.5,), {})))
    model = nn.Sequential(Halved(), nn.Linear(6, 3))
    with pytest.raises(UnboundedOperationError, match=r"^0: Halved is not known to round.*rounding\("):
        dplip.certify(model, torch.ones(1, 6))
    dplip.rounding.rounding(Halved)(lambda module, x: dplip.rounding.Roundings(output=1.0))
    assert float(dplip.certify(model, torch.ones(1, 6))) > 0
