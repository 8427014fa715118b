"""l-infinity distances: values, gradients, order statistics, pruning and ties."""

import itertools
import math
from math import inf

import pytest
import torch
from torch import Tensor

import dplip.nn as dn
from dplip.nn.linf import distance
from dplip.nn.linf.distance import distance_bounds, max_distance, ranked_distance
from dplip.nn.linf.power_mean import mean_distance
from dplip.nn.linf.pruning import candidates, pruned_winners, worth

EXPONENTS = (2.0, 3.5, 8.0, 64.0, 1024.0)


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
    w[0, :250] = 3.0  # ties among candidates
    w[1] = 0.0
    alive = candidates(x, w)
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
    assert bool(candidates(x, w)[0].all())


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


def test_blocks_cover_every_size():
    for n, m, d in itertools.product((1, 5, 600), (1, 300), (1, 30, 5000)):
        rows, some = distance.blocks(n, m, d)
        assert 1 <= rows <= max(n, 1) and 1 <= some <= m
