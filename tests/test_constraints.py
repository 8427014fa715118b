"""Every constraint: what it leaves is in its set, nearest where that is claimed; and it goes along with a copy."""

import copy
import io
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import dplip
from dplip import (
    ColumnL1Ball,
    EntryBall,
    FrobeniusBall,
    Orthogonal,
    RowL1Ball,
    SpectralBall,
    constrain,
    project,
)
from dplip.constraints import Constraint
from dplip.norms import NormCache, convolution_norms, matrix_norms

vector_norm = torch.linalg.vector_norm


def singular(weight: Tensor) -> Tensor:
    return torch.linalg.svdvals(weight.detach().double().flatten(1))


def sized(shape: tuple[int, ...], kind: str, seed: int = 0) -> Tensor:
    """Weights that projections meet: random, near and far from the set, degenerate, and of every scale."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(shape, generator=g)
    rows = w.flatten(1)
    if kind == "near orthogonal":
        nn.init.orthogonal_(rows)
        return (rows + 0.01 * torch.randn(rows.shape, generator=g)).reshape(shape)
    if kind == "rank deficient":
        rank = min(2, rows.shape[1])
        return (rows[:, :rank] @ torch.randn(rank, rows.shape[1], generator=g)).reshape(shape)
    if kind == "inside":
        return 1e-3 * w / vector_norm(w, 1)
    return w * {"random": 1.0, "huge": 1e6, "enormous": 1e25, "tiny": 1e-6}[kind]


def linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.clone()
    return layer


# ------------------------------------------------------------------------------------------------ balls

R = 1.5
BALLS: dict[str, tuple[Callable[[], Constraint], Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    # constraint, the norms that it bounds, and the support function of its unit ball
    "spectral": (lambda: SpectralBall(R), lambda w: torch.linalg.matrix_norm(w, 2), lambda w: singular(w).sum()),
    "frobenius": (lambda: FrobeniusBall(R), vector_norm, vector_norm),
    "entry": (lambda: EntryBall(R), lambda w: w.abs().max(), lambda w: w.abs().sum()),
    "row l1": (lambda: RowL1Ball(R), lambda w: w.abs().sum(1), lambda w: w.abs().amax(1)),
    "column l1": (lambda: ColumnL1Ball(R), lambda w: w.abs().sum(0), lambda w: w.abs().amax(0)),
}
KINDS = ["random", "near orthogonal", "rank deficient", "inside", "huge", "tiny"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(4, 4), (3, 8), (8, 3), (1, 5), (5, 1)])
@pytest.mark.parametrize("name", BALLS)
def test_a_ball_projects_in_the_euclidean_sense(name: str, shape: tuple[int, int], kind: str) -> None:
    """p in the set is nearest to w if and only if <w - p, z - p> <= 0 for every z in the set."""
    build, norms, support = BALLS[name]
    before = sized(shape, kind)
    layer = constrain(linear(before), "weight", build())
    p, w = layer.weight.detach().double(), before.double()
    scale = max(1.0, float(w.abs().max()))
    assert float(norms(p).max()) <= R * (1 + 1e-5)
    residual = w - p
    assert float(R * support(residual).sum() - (residual * p).sum()) <= 1e-5 * scale * w.numel()
    if float(norms(w).max()) <= R:
        assert torch.equal(layer.weight.detach(), before)


TWICE = [(name, kind) for name in (*BALLS, "orthogonal") for kind in KINDS]
TWICE.remove(("orthogonal", "rank deficient"))  # what was zero up to rounding grows with every projection


@pytest.mark.parametrize(("name", "kind"), TWICE)
def test_projecting_twice_is_projecting_once(name: str, kind: str) -> None:
    constraint = Orthogonal() if name == "orthogonal" else BALLS[name][0]()
    layer = constrain(linear(sized((6, 9), kind)), "weight", constraint)
    once = layer.weight.detach().clone()
    project(layer)
    torch.testing.assert_close(layer.weight.detach(), once, rtol=0, atol=2e-2 if name == "orthogonal" else 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_rows_of_a_kernel_stay_in_their_l1_balls(kind: str) -> None:
    layer = nn.Conv2d(2, 3, 3, bias=False)
    layer.weight.data = sized(tuple(layer.weight.shape), kind)
    constrain(layer, "weight", RowL1Ball(0.7))
    assert float(layer.weight.detach().double().flatten(1).abs().sum(1).max()) <= 0.7 * (1 + 1e-5)
    bounds = convolution_norms(layer.weight, (6, 6), (1, 1), [(1, 1), (1, 1)], (1, 1), 1)
    assert bounds.inf_inf <= 0.7 * (1 + 1e-4)


# ------------------------------------------------------------------------------------------------ orthogonal

SHAPES = [(1, 1), (3, 3), (8, 8), (5, 20), (20, 5), (64, 64), (1, 7), (7, 1), (100, 128)]


@pytest.mark.parametrize("kind", ["random", "near orthogonal", "rank deficient", "huge", "enormous", "tiny"])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_orthogonal_weight_never_exceeds_one(shape: tuple[int, int], kind: str) -> None:
    if kind == "rank deficient" and min(shape) < 3:
        return
    layer = constrain(linear(sized(shape, kind)), "weight", Orthogonal())
    values = singular(layer.weight)
    assert float(values.max()) <= 1 + 1e-4
    if kind == "rank deficient":  # what is zero stays zero; the rest becomes one
        values = values[:2]
    assert float((values**2 - 1).square().mean().sqrt()) <= 0.03
    if kind != "random" and shape[0] != shape[1]:
        assert float(values.min()) >= 0.95


def test_an_adversarial_spectrum_is_still_bounded() -> None:
    """One singular value at the edge of what the first Gram matrix certifies, at zero, or far out."""
    for top in (1.9999, 2.0, 2.0001, 1.9, 1.7320508, 1.0, 1e-3, 1e3):
        for rest in (0.0, 1e-4, 1.0, 0.99, 2.0):
            for r in (2, 3, 9, 40):
                u = torch.linalg.qr(torch.randn(r, r, generator=torch.Generator().manual_seed(r)))[0]
                v = torch.linalg.qr(torch.randn(r, r, generator=torch.Generator().manual_seed(r + 1)))[0]
                layer = linear(u @ torch.diag(torch.tensor([top] + [rest] * (r - 1))) @ v)
                constrain(layer, "weight", Orthogonal())
                assert float(singular(layer.weight).max()) <= 1 + 1e-4, (top, rest, r)


CONVOLUTIONS: list[tuple[type, tuple[int, ...], dict[str, object], tuple[int, ...]]] = [
    (nn.Conv2d, (2, 3, 3), {"padding": 1}, (2, 5, 5)),
    (nn.Conv2d, (2, 8, 2), {"stride": 2}, (2, 4, 4)),
    (nn.Conv2d, (2, 4, 3), {"stride": 2, "padding": 1}, (2, 6, 6)),
    (nn.Conv2d, (4, 4, 3), {"groups": 2, "padding": 1}, (4, 4, 4)),
    (nn.Conv2d, (2, 2, 3), {"dilation": 2, "padding": 2}, (2, 6, 6)),
    (nn.Conv2d, (2, 2, 3), {"stride": 2, "dilation": 2, "padding": 2}, (2, 7, 7)),
    (nn.Conv2d, (2, 2, 4), {"stride": 3, "dilation": 2}, (2, 10, 10)),
    (nn.Conv2d, (2, 3, (3, 1)), {"padding": "same", "padding_mode": "circular"}, (2, 4, 4)),
    (nn.Conv1d, (3, 2, 5), {"stride": 2, "padding": 2}, (3, 12)),
    (nn.Conv1d, (4, 6, 3), {"groups": 2, "stride": 3}, (4, 9)),
]


def explicit(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    n = math.prod(shape)
    return layer(torch.eye(n).reshape(n, *shape)).detach().double().reshape(n, -1).T


@pytest.mark.parametrize("kind", ["random", "near orthogonal", "huge", "tiny"])
@pytest.mark.parametrize("constraint", [Orthogonal, SpectralBall])
@pytest.mark.parametrize(("cls", "sizes", "options", "shape"), CONVOLUTIONS)
def test_a_constrained_convolution_has_norm_at_most_one(
    cls: type, sizes: tuple[int, ...], options: dict[str, object], shape: tuple[int, ...], constraint: type, kind: str
) -> None:
    layer = cls(*sizes, bias=False, **options)
    layer.weight.data = sized(tuple(layer.weight.shape), kind)
    constrain(layer, "weight", constraint())
    assert float(torch.linalg.matrix_norm(explicit(layer, shape), 2)) <= 1 + 1e-3
    assert float(layer.weight.detach().abs().max()) > 0


def test_patches_that_do_not_overlap_make_an_orthogonal_convolution() -> None:
    layer = constrain(nn.Conv2d(2, 8, 2, stride=2, bias=False), "weight", Orthogonal())
    values = torch.linalg.svdvals(explicit(layer, (2, 6, 6)))
    assert 0.95 <= float(values.min()) <= float(values.max()) <= 1 + 1e-4


# ------------------------------------------------------------------------------------------------ with carried norms


@pytest.mark.parametrize("build", [Orthogonal, SpectralBall])
@pytest.mark.parametrize("shape", [(6, 6), (4, 12), (12, 4), (64, 32)])
def test_a_recorded_bound_is_never_below_the_true_norm(build: Callable[[], Constraint], shape: tuple[int, int]) -> None:
    """Noisy steps, small and large, then the projection, as in training; and writes behind the cache's back."""
    torch.manual_seed(0)
    layer = linear(torch.randn(shape))
    cache = NormCache()
    with cache:
        constrain(layer, "weight", build())
    for step in range(80):
        size = (1e-5, 1e-3, 0.05, 1.0, 100.0)[step % 5]
        layer.weight.data.add_(size * torch.randn(shape) / math.sqrt(shape[0]))
        with cache:
            if step % 7 != 3:
                project(layer)
            bound = matrix_norms(layer.weight).two_two
        assert float(singular(layer.weight).max()) <= bound * (1 + 1e-9), step
        if step % 7 != 3:
            assert bound <= 1.03, step
        if step % 11 == 10:
            layer.weight.data = torch.randn(shape) * 10 ** float(torch.randn(()))


def test_a_small_drift_is_not_projected_again() -> None:
    layer = linear(torch.randn(32, 32))
    cache = NormCache()
    with cache:
        constrain(layer, "weight", Orthogonal())
        for _ in range(5):
            layer.weight.data.add_(1e-6)
            kept = layer.weight.detach().clone()
            project(layer)
            assert torch.equal(layer.weight.detach(), kept)
        layer.weight.data.add_(0.1)
        project(layer)
        assert float(singular(layer.weight).max()) <= 1 + 1e-4


# ------------------------------------------------------------------------------------------------ persistence


def model() -> nn.Sequential:
    return nn.Sequential(dplip.nn.OrthogonalLinear(4, 6), nn.ReLU(), dplip.nn.SpectralLinear(6, 3, bias=True))


def saved_and_loaded(m: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(m, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, saved_and_loaded])
def test_constraints_go_along_with_a_copy(copied: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    original = model()
    other = copied(original)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(10)
    kept = {k: v.clone() for k, v in original.state_dict().items()}
    project(other)
    for k in (0, 2):
        assert float(singular(other[k].weight).max()) <= 1 + 1e-4
        assert float(singular(other[k].weight).min()) >= 0.95
    assert all(torch.equal(kept[k], v) for k, v in original.state_dict().items())


def test_constraints_add_nothing_to_a_state_dict() -> None:
    m = model()
    assert list(m.state_dict()) == ["0.weight", "2.weight", "2.bias"]
    assert [name for name, _ in m.named_parameters()] == ["0.weight", "2.weight", "2.bias"]
    plain = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3))
    plain.load_state_dict(m.state_dict())
    m.load_state_dict(plain.state_dict())
    buffer = io.BytesIO()
    torch.save(m.state_dict(), buffer)
    buffer.seek(0)
    m.load_state_dict(torch.load(buffer, weights_only=True))
    x = torch.randn(5, 4)
    assert torch.equal(plain(x), m(x))


def test_constraints_hold_in_another_type() -> None:
    m = model().to(torch.float64)
    with torch.no_grad():
        m[0].weight.mul_(7)
        m[2].weight.mul_(7)
    project(m)
    for k in (0, 2):
        assert m[k].weight.dtype == torch.float64
        assert float(singular(m[k].weight).max()) <= 1 + 1e-6


def test_a_constrained_layer_is_still_walked_by_its_rule() -> None:
    bounds = dplip.parameter_bounds(model(), (4,), dplip.Norms((4,), l2=1.0))
    assert list(bounds) == ["0.weight", "2.weight", "2.bias"]
    assert bounds["2.bias"] == 1.0


def test_a_later_constraint_takes_the_place_of_an_earlier_one() -> None:
    layer = constrain(linear(10 * torch.randn(4, 4)), "weight", EntryBall(0.1))
    constrain(layer, "weight", FrobeniusBall(2.0))
    with torch.no_grad():
        layer.weight.fill_(0.5)
    project(layer)
    assert torch.equal(layer.weight.detach(), torch.full((4, 4), 0.5))


def test_two_parameters_of_one_layer_have_constraints_of_their_own() -> None:
    layer = nn.Linear(4, 4)
    constrain(layer, "weight", FrobeniusBall(1.0))
    constrain(layer, "bias", EntryBall(0.25))
    with torch.no_grad():
        layer.weight.fill_(9)
        layer.bias.fill_(9)
    project(nn.Sequential(nn.ReLU(), layer))
    assert torch.equal(layer.bias.detach(), torch.full((4,), 0.25))
    assert math.isclose(float(vector_norm(layer.weight.detach())), 1.0, rel_tol=1e-6)


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("radius", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("cls", [SpectralBall, FrobeniusBall, EntryBall, RowL1Ball, ColumnL1Ball])
def test_a_radius_is_finite_and_positive(cls: type, radius: float) -> None:
    with pytest.raises(dplip.ConfigurationError, match="radius"):
        cls(radius)


class OwnName(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 3)
        self.constraints = ["mine"]


REFUSED: dict[str, tuple[Callable[[], nn.Module], str, Callable[[], Constraint], str]] = {
    "no such parameter": (lambda: nn.Linear(3, 3), "kernel", Orthogonal, "kernel"),
    "no bias": (lambda: nn.Linear(3, 3, bias=False), "bias", EntryBall, "bias"),
    "a child's parameter": (lambda: nn.Sequential(nn.Linear(3, 3)), "0.weight", EntryBall, "0.weight"),
    "name in use": (OwnName, "weight", EntryBall, "constraints"),
    "columns of a kernel": (lambda: nn.Conv2d(2, 2, 3), "weight", ColumnL1Ball, "matrix"),
    "columns of a bias": (lambda: nn.Linear(3, 3), "bias", ColumnL1Ball, "matrix"),
    "orthogonal bias": (lambda: nn.Linear(3, 3), "bias", Orthogonal, "shape"),
    "spectral bias": (lambda: nn.Linear(3, 3), "bias", SpectralBall, "shape"),
    "rows of a bias": (lambda: nn.Linear(3, 3), "bias", RowL1Ball, "shape"),
    "zeros": (lambda: linear(torch.zeros(3, 3)), "weight", Orthogonal, "zeros"),
    "not a number": (lambda: linear(torch.full((3, 3), math.nan)), "weight", Orthogonal, "NaN"),
    "infinite": (lambda: linear(torch.full((3, 3), math.inf)), "weight", SpectralBall, "infinite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_constraint_that_cannot_hold_is_refused(name: str) -> None:
    build, parameter, constraint, said = REFUSED[name]
    layer = build()
    with pytest.raises(dplip.ConfigurationError, match=said):
        constrain(layer, parameter, constraint())
    project(layer)  # nothing was attached
