"""l-infinity networks: their distances, gradients, bounds, losses, intervals and certificates under attack."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import dplip
import dplip.nn as dn
from dplip.certificates import Certifier, correct_radii, predictions
from dplip.certificates.hybrid import Cuts, cuts
from dplip.certificates.intervals import Boxes
from dplip.certificates.radii import seeds
from dplip.data import load
from dplip.errors import ConfigurationError, UnboundedOperationError
from dplip.losses import ClippedHinge
from dplip.models.sortnet import SORTNETS, exponent_at
from dplip.nn.linf import distance, kernel
from dplip.nn.linf.distance import distance_bounds, max_distance, ranked_distance
from dplip.nn.linf.power_mean import mean_distance
from dplip.nn.linf.pruning import pruned_winners, survivors, worth
from dplip.propagation import Walk
from dplip.runtime.mode import evaluation

torch.set_num_threads(1)
inf = math.inf
EXPONENTS = (2.0, 3.5, 8.0, 64.0, 1024.0)


@pytest.fixture(params=["torch", "compiled"])
def loops(request, monkeypatch) -> str:
    """Run with the torch form of the distances, and with the compiled one (the same form where no compiler is)."""
    monkeypatch.setattr(kernel, "WORTH", 0 if request.param == "compiled" else 2**62)
    return request.param


def pair(n: int = 37, d: int = 19, m: int = 11, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(n + d + m)
    x, w = torch.randn(n, d, dtype=dtype), torch.randn(m, d, dtype=dtype)
    return x.requires_grad_(), w.requires_grad_()


def row_gradients(y: Tensor, w: Tensor) -> Tensor:
    """The gradient in w of each entry of y, shape (n, m, d): row j of the gradient of y_ij."""
    rows = [
        torch.autograd.grad(y[i, j], w, retain_graph=True)[0][j] for i, j in itertools.product(*map(range, y.shape))
    ]
    return torch.stack(rows).reshape(*y.shape, -1)


# ---------------------------------------------------------------------------------------------------- distances


@pytest.mark.parametrize("sizes", [(37, 19, 11), (1, 1, 1), (5, 100, 3), (600, 4, 2), (64, 1, 5), (0, 3, 2)])
@pytest.mark.parametrize("masked", [False, True])
def test_distances_and_gradients_are_those_of_the_definition(loops, sizes, masked):
    x, w = pair(*sizes)
    keep = (torch.rand(x.shape) > 0.4).to(x.dtype) if masked else None
    y = max_distance(x, w, keep)
    z = (x[:, None] - w).abs() * (1 if keep is None else keep[:, None])
    expected = z.max(2).values
    assert torch.equal(y, expected)
    g = torch.randn_like(expected)
    found, wanted = (torch.autograd.grad((t * g).sum(), (x, w)) for t in (y, expected))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def spread(scale: float, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Rows whose range is small beside the spread of the points, so that most features can never win."""
    torch.manual_seed(0)
    return torch.rand(70, 300, dtype=dtype) * scale, torch.randn(9, 300, dtype=dtype)


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0])
def test_pruning_changes_neither_values_nor_winners(scale):
    x, w = spread(scale)
    w[0, :250] = 3.0  # ties among survivors
    w[1] = 0.0
    alive = survivors(x, w)
    assert float(alive.float().mean()) < 0.5 and worth(alive)
    z = (x[:, None] - w).abs()
    assert bool(
        alive[None].expand_as(z)[z == z.amax(2, keepdim=True)].all()
    )  # no winner, and none of its ties, is lost
    values, code = pruned_winners(x, w, alive, block=1000)
    assert torch.equal(values, z.amax(2))
    at = (code.abs().long() - 1).clamp_min(0)
    signed = (x[:, None] - w).gather(2, at[..., None])[..., 0]
    assert torch.equal(signed.abs(), values) and torch.equal(signed.sign(), code.sign().to(signed.dtype))


def test_pruning_leaves_out_nothing_that_is_not_a_number():
    x, w = spread(1.0)
    w[0, 3] = math.nan
    assert bool(survivors(x, w)[0].all())


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("masked", [False, True])
def test_the_power_mean_is_that_of_the_definition(loops, p, masked):
    x, w = pair()
    keep = (torch.rand(x.shape) > 0.4).to(x.dtype) if masked else None
    y = mean_distance(x, w, p, keep)
    z = (x.double()[:, None] - w.double()).abs() * (1 if keep is None else keep[:, None])
    expected = z.pow(p).mean(2).pow(1 / p)
    ok = torch.isfinite(expected) & (expected > 0)  # float64 itself overflows at large p
    torch.testing.assert_close(y[ok].double(), expected[ok], rtol=2e-6, atol=1e-7)
    found = torch.autograd.grad(y.sum(), (x, w))
    x64, w64 = x.detach().double().requires_grad_(), w.detach().double().requires_grad_()
    wanted = torch.autograd.grad(mean_distance(x64, w64, p, None if keep is None else keep.double()).sum(), (x64, w64))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)
    assert torch.autograd.gradcheck(lambda a, b: mean_distance(a, b, min(p, 8.0)), (x64[:4, :5], w64[:3, :5]))


def test_order_statistics_are_those_of_the_definition(loops):
    x, w = pair(40, 19, 11)
    omega = torch.tensor([0.6, 0.3, 0.1])
    y = ranked_distance(x, w, omega)
    expected = (x[:, None] - w).abs().sort(2, descending=True).values[..., :3] @ omega
    torch.testing.assert_close(y, expected)
    with torch.no_grad():
        torch.testing.assert_close(ranked_distance(x, w, omega), expected)
    found, wanted = (torch.autograd.grad(t.square().sum(), (x, w)) for t in (y, expected))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_no_product_of_batch_outputs_and_inputs_is_kept(loops):
    kept: list[int] = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t.numel())
        return t

    x, w = pair(64, 96, 48)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        max_distance(x, w)
        mean_distance(x, w, 8.0)
    assert kept and max(kept) <= 64 * 96  # never 64 * 48 * 96


# ---------------------------------------------------------------------------------------------------- ties, huge, NaN

TIED = {
    "all tied": (torch.zeros(3, 4), torch.ones(2, 4)),
    "opposite signs": (torch.zeros(3, 4), torch.tensor([[1.0, 1.0, -1.0, 0.2], [-1.0, 1.0, -1.0, 1.0]])),
    "equal": (torch.ones(3, 4), torch.ones(2, 4)),
    "huge": (torch.full((3, 4), 3e38), torch.randn(2, 4)),
    "infinite": (torch.full((3, 4), -inf), torch.randn(2, 4)),
    "NaN": (torch.full((3, 4), math.nan), torch.randn(2, 4)),
    "mixed": (torch.tensor([[math.nan, inf, -inf, 0.0]] * 3), torch.zeros(2, 4)),
    "tiny": (torch.full((3, 4), 1e-42), torch.zeros(2, 4)),
}


@pytest.mark.parametrize("name", TIED)
@pytest.mark.parametrize("p", [*EXPONENTS, inf])
def test_every_gradient_row_has_l1_norm_at_most_one(loops, name, p):
    x, w = TIED[name]
    layer = dn.LInfDistance(4, 2, p=p)
    layer.weight.data = w.clone()
    x = x.clone().requires_grad_()
    y = layer(x)
    assert y.isfinite().all()
    rows = row_gradients(y, layer.weight)
    assert rows.isfinite().all()
    assert float(rows.abs().sum(2).max()) <= 1 + 1e-5
    if math.isinf(p):
        assert int((rows != 0).sum(2).max()) <= 1  # one-hot, at ties too
    (back,) = torch.autograd.grad(y.sum(), x)
    assert back.isfinite().all() and float(back.abs().sum(1).max()) <= 2 * (1 + 1e-5)


def test_torch_cdist_gives_every_tied_coordinate_the_whole_gradient():
    """Why LInfDistance has a backward pass of its own: with cdist's, one example could exceed every bound."""
    x, w = torch.zeros(1, 4), torch.tensor([[1.0, 1.0, -1.0, 0.2]])
    of_cdist = w.clone().requires_grad_()
    torch.cdist(x, of_cdist, p=inf).sum().backward()
    ours = w.clone().requires_grad_()
    max_distance(x, ours).sum().backward()
    assert float(of_cdist.grad.abs().sum()) == 3.0
    assert float(ours.grad.abs().sum()) == 1.0


# ---------------------------------------------------------------------------------------------------- estimator


def test_the_dropout_estimator_is_unbiased():
    """Over all 2^6 masks, E max s |x - w| is the geometric sum of order statistics; then by sampling, in the layer."""
    rho, d = 0.3, 6
    torch.manual_seed(0)
    x, w = torch.randn(1, d, dtype=torch.float64), torch.randn(3, d, dtype=torch.float64)
    masks = torch.tensor(list(itertools.product([0.0, 1.0], repeat=d)), dtype=torch.float64)
    chance = (masks * (1 - rho) + (1 - masks) * rho).prod(1)
    mean = (max_distance(x.expand(len(masks), d), w, masks) * chance[:, None]).sum(0)
    ranks = (1 - rho) * rho ** torch.arange(d, dtype=torch.float64)
    exact = (x - w).abs().sort(1, descending=True).values @ ranks
    torch.testing.assert_close(mean, exact, rtol=1e-12, atol=1e-12)
    layer = dn.SortNetLinear(d, 3, rho=rho, top=d).double()
    layer.weight.data = w
    drawn = layer(x.expand(40_000, d))
    torch.testing.assert_close(drawn.mean(0), exact, rtol=0, atol=5 * float(drawn.std(0).max()) / 200)
    layer.eval()
    assert sum(layer.omega()) == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(layer(x)[0] * (1 - rho**d), exact)


def test_masks_are_drawn_for_each_example_on_its_own():
    torch.manual_seed(0)
    layer = dn.SortNetLinear(50, 4, rho=0.5)
    y = layer(torch.randn(1, 50).expand(64, 50))
    assert len(y.unique(dim=0)) > 32


# ---------------------------------------------------------------------------------------------------- bounds


def small(width: int = 16, clamp: bool = False, rho: float = 0.3) -> nn.Sequential:
    torch.manual_seed(1)
    first = [dn.Clamp(0.0, 1.0)] if clamp else []
    return nn.Sequential(
        *first,
        dn.LInfDistance(12, width),
        dn.SortNetLinear(width, width, rho),
        dn.SortNetLinear(width, 5, rho, negate=True),
    )


LOSS = ClippedHinge(threshold=0.5, cross_entropy=0.3, temperature=4.0)


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


# ---------------------------------------------------------------------------------------------------- loss


def test_the_clipped_hinge_stays_within_its_bounds():
    torch.manual_seed(0)
    for scale in (0.01, 0.3, 3.0, 1e4):
        z = (scale * torch.randn(200, 5)).requires_grad_()
        z.data[:20] = z.data[:20].mean()  # ties
        y = torch.randint(5, (200,))
        values = LOSS.per_example(z, y)
        rows = torch.autograd.grad(values.sum(), z)[0]
        norms = LOSS.logit_gradient((5,))
        for p, bound in ((1, norms.l1), (2, norms.l2), (inf, norms.linf)):
            assert float(torch.linalg.vector_norm(rows, p, 1).max()) <= float(bound) * (1 + 1e-6)
    z = torch.tensor([[1.0, 0.0, 0.0]])
    only = ClippedHinge(threshold=0.5, cross_entropy=0.0)
    assert float(only(z, torch.tensor([0]))) == 0.0 and float(only(z, torch.tensor([1]))) == 1.0
    with pytest.raises(ConfigurationError, match="rival"):
        only(torch.zeros(2, 1), torch.tensor([0, 0]))


# ---------------------------------------------------------------------------------------------------- intervals


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.register_buffer("offset", torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(x - 0.3) * 2 + (-self.inner(x) / 3)
        y = torch.cat((y[:, :4], torch.abs(y[:, 4:]) + 1), 1) + self.offset
        return self.head(torch.tanh(y) - y.mean(1, keepdim=True))


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        dn.Clamp(0.0, 1.0),
        nn.Conv2d(1, 4, 3, padding=1),
        dn.GroupSort(2),
        dn.ScaledL2NormPool2d(2),
        nn.AvgPool2d(2),
        nn.Flatten(),
        dn.Center(),
        dn.BallProjection(1.0),
        nn.Linear(16, 3),
    )


def windows() -> nn.Sequential:
    """Order statistics of windows in front, a network that is bounded in l2 behind."""
    front = [dn.Clamp(0.1, 0.9), nn.MaxPool2d(3, 2, 1), nn.Flatten()]
    return nn.Sequential(*front, dn.OrthogonalLinear(16, 16), dn.GroupSort(2), dn.OrthogonalLinear(16, 3))


class Branches(nn.Module):
    """Values that meet again: neither branch is a cut, their sum is one."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = dn.OrthogonalLinear(8, 8), dn.OrthogonalLinear(8, 8), dn.OrthogonalLinear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.clamp(x, 0.1, 0.9)
        return self.head(torch.abs(self.one(x)) + torch.relu(self.two(x)))


def patches() -> nn.Sequential:
    distances = dn.LInfDistance2d(1, 4, 3, stride=2, padding=1)
    return nn.Sequential(distances, nn.MaxPool2d(2), nn.Flatten(), nn.ELU(), nn.Linear(16, 3))


def centred() -> nn.Sequential:
    mean = dn.PrivateMean((8,), 1.0)
    mean.mean.uniform_()
    return nn.Sequential(mean, dn.LogCompression(20.0), nn.Linear(8, 3))


NETS = {
    "centred": (centred, (8,)),
    "sortnet": (small, (12,)),
    "clamped sortnet": (lambda: small(clamp=True), (12,)),
    "mixed": (lambda: nn.Sequential(dn.Clamp(0, 1), small()[0], nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4)), (12,)),
    "binary": (lambda: nn.Sequential(dn.LInfDistance(12, 6), nn.Linear(6, 1)), (12,)),
    "residual": (Residual, (8,)),
    "convolutional": (convolutional, (1, 8, 8)),
    "patches": (patches, (1, 8, 8)),
    "windows": (windows, (1, 8, 8)),
    "branches": (Branches, (8,)),
}


def built(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    build, shape = NETS[name]
    torch.manual_seed(3)
    return build().eval(), shape


def corners(x: Tensor, r: Tensor, tries: int = 60) -> Tensor:
    """Inputs in the box around each x: corners, faces and points inside; shape (tries, batch, ...)."""
    r = r.reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype)
    moves = torch.rand(tries, *x.shape) * 2 - 1
    moves[: tries // 2] = moves[: tries // 2].sign()
    return x + 0.9999 * r * moves


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


@pytest.mark.parametrize("name", NETS)
def test_intervals_are_never_looser_than_the_margin_and_no_attack_succeeds_inside(name):
    model, shape = built(name)
    torch.manual_seed(0)
    x = torch.rand(24, *shape)
    with evaluation(model), torch.no_grad():
        certifier = Certifier(model, shape, inf)
        assert certifier.boxes is not None
        both = certifier.radii(x, model(x))
        certifier.cuts = None
        boxes = certifier.radii(x, model(x))
        certifier.boxes = None
        margin = certifier.radii(x, model(x))
    assert bool((both >= boxes - 2**-12).all() and (boxes >= margin).all()) and float(both.max()) > 0
    before = predictions(model(x).detach())
    for moved in ascended(model, x, both):
        assert torch.equal(predictions(model(moved).detach()), before)


def test_boxes_up_to_a_cut_and_norms_behind_it_certify_more_than_either():
    model, shape = built("windows")
    torch.manual_seed(0)
    x = torch.rand(64, *shape).round()  # pixels at the ends of their range, which a small change does not move
    with evaluation(model), torch.no_grad():
        certifier = Certifier(model, shape, inf)
        assert certifier.cuts
        both = certifier.radii(x, model(x))
        certifier.cuts = None
        boxes = certifier.radii(x, model(x))
    assert float(both.mean()) > 1.1 * float(boxes.mean())
    assert not Certifier(small().eval(), (12,), inf).cuts  # pure l-infinity: nothing to be had from a norm


def test_cuts_are_what_all_later_values_pass_through():
    model, shape = built("branches")
    walk = Walk(model, shape)
    assert [step.node.name for step in walk.calls()] == [
        "clamp", "model_one", "abs_1", "model_two", "relu", "add", "model_head"
    ]  # fmt: skip
    assert [node.name for node in cuts(walk)] == ["clamp", "add"]


@pytest.mark.parametrize("name", ["windows", "branches", "convolutional", "residual"])
def test_no_score_moves_further_than_the_deviation_at_a_cut_allows(name):
    """The claim itself, at every cut: differences of scores change by at most slope times deviation."""
    model, shape = built(name)
    walk = Walk(model, shape)
    boxes, held = Boxes(walk), Cuts(walk, seeds(walk), 3)
    assert held
    torch.manual_seed(0)
    x, r = torch.rand(8, *shape), torch.full((8,), 0.15)
    z = model(x).detach().double()
    moved, still = boxes.around(x, r), boxes.values(x, x)
    worst = torch.zeros(8, 3, dtype=torch.float64)
    for at in [*corners(x, r, 300), *ascended(model, x, r)]:
        change = z - model(at).detach().double()
        for y in range(3):
            worst[:, y] = torch.maximum(worst[:, y], (change[:, y, None] - change).amax(1))
    for y in range(3):
        top = torch.full((8,), y)
        # Were the gap to every rival what was reached, the cuts must not claim that it holds.
        claimed = held.hold(moved, still, worst[:, y, None].expand(8, 3) - 1e-5, top)
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


def test_the_least_and_greatest_distance_over_a_box(loops):
    torch.manual_seed(0)
    low, points = torch.randn(40, 7), torch.randn(5, 7)
    high = low + torch.rand(40, 7)
    omega = torch.tensor([0.7, 0.2, 0.1])
    least, most = distance_bounds(low, high, points, omega)
    for _ in range(200):
        x = low + torch.rand_like(low).round() * (high - low)
        y = ranked_distance(x, points, omega)
        assert bool((least <= y + 1e-6).all() and (y <= most + 1e-6).all())


def test_certificates_of_unusual_inputs():
    model = small().eval()
    x = torch.tensor([[math.nan] * 12, [inf] * 12, [1e30] * 12, [0.0] * 12])
    radii = dplip.certify(model, x, norm=inf)
    assert float(radii[0]) == float(radii[1]) == 0.0 and bool((radii >= 0).all())
    assert dplip.certify(model, torch.zeros(0, 12), norm=inf).shape == (0,)


# ---------------------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, TensorDataset]:
    data = load("digits")
    recipe = SORTNETS["digits"]
    torch.manual_seed(0)
    model = recipe.model(data.input_shape, data.num_classes)
    loss, optimizer = recipe.loss(), recipe.optimizer(model)
    trainer = dplip.DPLipTrainer(
        model, loss=loss, optimizer=optimizer, train_dataset=data.train, eval_dataset=data.test,
        batch_size=recipe.batch_size, epochs=recipe.epochs, noise_multiplier=0.0, progress=False, seed=0, norm=inf,
    )  # fmt: skip
    trainer.scheduler = recipe.scheduler(optimizer, model, loss, trainer.steps)
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


def test_blocks_cover_every_size():
    for n, m, d in itertools.product((1, 5, 600), (1, 300), (1, 30, 5000)):
        rows, some = distance.blocks(n, m, d)
        assert 1 <= rows <= max(n, 1) and 1 <= some <= m
