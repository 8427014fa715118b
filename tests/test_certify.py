"""Certificates: no attack succeeds inside a radius, and a radius is claimed only where there is a prediction."""

import copy
import math

import pytest
import torch
from small_models import MODELS, built, dropping, orthogonal, plain
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import dplip
import dplip.nn as dn
from dplip.certificates import (
    Certifier,
    average_certified_radius,
    certified_accuracy,
    certified_curve,
    correct_radii,
    predictions,
)
from dplip.data import load
from dplip.errors import ConfigurationError, UnboundedOperationError
from dplip.losses import CrossEntropy
from dplip.runtime.mode import evaluation

torch.set_num_threads(1)

NORMS = (1, 2, math.inf)
DUAL = {1: math.inf, 2: 2, math.inf: 1}
every_norm = pytest.mark.parametrize("norm", NORMS)


class Standardized(nn.Module):
    """Raw pixels to standardised ones by public constants, as part of the model."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Squeezed(nn.Module):
    """Gives its one score without an axis for it."""

    def __init__(self, scores: nn.Module) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(x).squeeze(1)


def trained(model: nn.Module, x: Tensor, y: Tensor, steps: int = 60, lr: float = 0.5) -> nn.Module:
    """A few seconds of training without privacy, with the constraints kept."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    loss = CrossEntropy(16.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(0, len(x), (128,), generator=generator)
        optimizer.zero_grad()
        (loss(model(x[rows]), y[rows]) / len(rows)).backward()
        optimizer.step()
        dplip.project(model)
    return model.eval()


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    data = load("digits")
    torch.manual_seed(0)
    model = nn.Sequential(dn.Shift(0.5), nn.Flatten(), orthogonal(64, 32, 10, radius=4.0))
    trained(model, *data.train.tensors)
    x, y = (t[:100] for t in data.test.tensors)
    assert float((model(x).argmax(1) == y).float().mean()) > 0.85
    return model, x, y


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
    model = orthogonal(6, 8, 1)
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
            model[-1].bias.copy_(-model[:-1](x).matmul(model[-1].weight.T).mean(0) if name != "distances" else 0.0)
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

    assert not [f for f in registered() if f not in ROUNDINGS and f.__module__.startswith(("dplip", "torch"))]


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


@every_norm
def test_a_certificate_is_the_same_within_autocast_and_every_other_setting(norm):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).eval(), torch.rand(50, 64)
    plain_radii = dplip.certify(model, x, norm)
    data = TensorDataset(x, model(x).argmax(1))
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            with pytest.raises(ConfigurationError, match="autocast"):  # its predictions are not the certified ones
                dplip.certify(model, x, norm)
            torch.testing.assert_close(correct_radii(model, data, norm), plain_radii)
            assert torch.is_autocast_enabled("cpu")
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(dplip.certify(model, x, norm), plain_radii)
    finally:
        torch.set_default_dtype(torch.float32)


@every_norm
def test_a_certifier_is_certify_with_the_slopes_kept(digits, norm):
    model, x, _ = digits
    certifier = Certifier(model, tuple(x.shape[1:]), norm)
    torch.testing.assert_close(torch.cat([certifier(part) for part in x.split(30)]), dplip.certify(model, x, norm))


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


def test_a_wrong_prediction_has_no_radius(digits):
    model, x, y = digits
    found = correct_radii(model, TensorDataset(x, y))
    right = model(x).argmax(1) == y
    assert (found[~right] == -1).all() and (~right).any()
    torch.testing.assert_close(found[right], dplip.certify(model, x)[right])


def test_certified_accuracy_is_strict_and_at_radius_zero_it_is_accuracy():
    found = torch.tensor([0.0, 0.5, 1.0, -1.0])
    assert certified_accuracy(found, [0.0, 0.25, 0.5, 0.75, 1.0]) == [0.75, 0.5, 0.25, 0.25, 0.0]


def test_certified_accuracy_falls_with_the_radius(digits):
    model, x, y = digits
    found = correct_radii(model, TensorDataset(x, y))
    accuracy = certified_accuracy(found, [i / 50 for i in range(60)])
    assert accuracy == sorted(accuracy, reverse=True)
    assert accuracy[0] == float((model(x).argmax(1) == y).double().mean())


def test_the_average_certified_radius_is_the_area_under_the_curve(digits):
    model, x, y = digits
    found = correct_radii(model, TensorDataset(x, y))
    at, accuracy = certified_curve(found, 2000)
    area = torch.trapezoid(torch.tensor(accuracy), torch.tensor(at))
    assert average_certified_radius(found) == pytest.approx(float(area), rel=2e-3)
    assert average_certified_radius(torch.tensor([-1.0, 0.0, 3.0])) == 1.0


def test_a_curve_without_any_radius_is_flat():
    at, accuracy = certified_curve(torch.tensor([-1.0, -1.0]), 4)
    assert at == [0.0] * 5 and accuracy == [0.0] * 5


def attained_constant(module: nn.Module, shape: tuple[int, ...], norm: float) -> float:
    """The largest operator norm of a Jacobian at many points."""
    generator = torch.Generator().manual_seed(0)
    best = 0.0
    for trial in range(9):
        x = torch.randn(shape, generator=generator) * (0.1, 1.0, 10.0)[trial % 3]
        jacobian = torch.autograd.functional.jacobian(lambda v: module(v[None])[0], x).double()
        matrix = jacobian.reshape(-1, math.prod(shape))
        best = max(best, float(torch.linalg.matrix_norm(matrix, norm)))
    return best


LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (6,)),
    "tall": (lambda: nn.Linear(3, 9), (3,)),
    "convolution": (lambda: nn.Conv2d(2, 3, 3, padding=1), (2, 6, 6)),
    "strided": (lambda: nn.Conv2d(2, 3, 3, stride=2), (2, 7, 7)),
    "ball": (lambda: dn.BallProjection(1.0), (5,)),
    "center": (lambda: dn.Center(), (5,)),
    "standardized": (lambda: Standardized(torch.rand(5), 0.1 + torch.rand(5)), (5,)),
    "pooling": (lambda: dn.ScaledL2NormPool2d(2), (1, 4, 4)),
    **MODELS,
}


@pytest.mark.parametrize("name", LAYERS)
@every_norm
def test_no_jacobian_exceeds_the_lipschitz_constant(name, norm):
    builder, shape = LAYERS[name]
    torch.manual_seed(0)
    module = builder().eval()
    assert attained_constant(module, shape, norm) <= dplip.lipschitz(module, shape, norm) * (1 + 1e-6)


@every_norm
def test_the_lipschitz_constant_of_a_linear_layer_is_exact(norm):
    layer = nn.Linear(6, 4)
    exact = float(torch.linalg.matrix_norm(layer.weight.detach().double(), norm))
    assert exact <= dplip.lipschitz(layer, (6,), norm) * (1 + 1e-7)
    assert dplip.lipschitz(layer, (6,), norm) == pytest.approx(exact, rel=2e-5)


def test_an_orthogonal_network_has_lipschitz_constant_one_in_l2():
    assert dplip.lipschitz(orthogonal(16, 16, 8), (16,)) == pytest.approx(1.0, rel=3e-5)


def test_an_empty_batch_has_no_radii():
    certified = dplip.certify(orthogonal(), torch.zeros(0, 6))
    assert certified.shape == (0,) and certified.dtype == dplip.certify(orthogonal(), torch.zeros(1, 6)).dtype


def test_parts_of_a_batch_are_certified_alike(digits):
    model, x, _ = digits
    torch.testing.assert_close(dplip.certify(model, x, batch_size=7), dplip.certify(model, x), rtol=1e-4, atol=1e-5)


def test_modes_and_gradients_are_left_as_they_were():
    model = dropping().train()
    model[2].eval()
    modes = [m.training for m in model.modules()]
    x = torch.randn(5, 6)
    certified = dplip.certify(model, x)
    assert [m.training for m in model.modules()] == modes
    torch.testing.assert_close(certified, dplip.certify(copy.deepcopy(model).eval(), x))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not certified.requires_grad
    with pytest.raises(ConfigurationError):
        dplip.certify(model, x, norm=3)
    correct_radii(model, TensorDataset(x, torch.zeros(5, dtype=torch.int64)))
    assert [m.training for m in model.modules()] == modes


@pytest.mark.parametrize("norm", [0, 3, -1, math.nan, "2"])
def test_a_norm_without_certificates_is_refused(norm):
    with pytest.raises(ConfigurationError, match="norm"):
        dplip.certify(orthogonal(), torch.zeros(1, 6), norm=norm)
    with pytest.raises(ConfigurationError, match="norm"):
        dplip.lipschitz(orthogonal(), (6,), norm=norm)


def test_a_model_that_draws_in_evaluation_mode_has_no_certificate():
    class Drawing(nn.Module):
        def __init__(self, training: bool) -> None:
            super().__init__()
            self.linear, self.active = nn.Linear(6, 3), training

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(self.linear(x), 0.5, self.active)

    assert float(dplip.certify(Drawing(False), torch.ones(1, 6))) > 0
    with pytest.raises(UnboundedOperationError, match="draws random numbers in evaluation mode"):
        dplip.certify(Drawing(True), torch.ones(1, 6))
    with pytest.raises(UnboundedOperationError, match="draws random numbers in evaluation mode"):
        dplip.certify_monotonic(Drawing(True), [1, 0, 0, 0, 0, 0])


@pytest.mark.parametrize(
    "x",
    [torch.ones(2, 6).double(), torch.ones(2, 6).bfloat16(), torch.ones(2, 6).long(), [[1.0] * 6], torch.tensor(1.0)],
)
def test_inputs_that_are_no_batch_of_floats_are_refused(x):
    with pytest.raises(ConfigurationError, match=r"^x "):
        dplip.certify(orthogonal(), x)


def test_what_is_no_classifier_is_refused():
    with pytest.raises(ConfigurationError, match="scores"):
        dplip.certify(nn.Conv2d(1, 2, 3), torch.zeros(1, 1, 5, 5))
    with pytest.raises(ConfigurationError, match="empty"):
        correct_radii(orthogonal(), TensorDataset(torch.zeros(0, 6), torch.zeros(0)))
    with pytest.raises(UnboundedOperationError, match="BatchNorm"):
        dplip.certify(nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 2)), torch.zeros(2, 6))
