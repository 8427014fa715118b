"""Projections onto balls: what they leave is in the set, and nearest where that is claimed."""

from collections.abc import Callable

import pytest
import torch
from helpers.weights import linear, singular, sized, vector_norm
from torch import Tensor, nn

import dplip
from dplip import (
    ColumnL1Ball,
    EntryBall,
    FrobeniusBall,
    Orthogonal,
    RowL1Ball,
    RowL2Ball,
    SpectralBall,
    constrain,
    project,
)
from dplip.constraints import Constraint
from dplip.norms import convolution_norms

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


def test_rows_of_weights_are_projected_onto_the_l2_ball():
    layer = constrain(nn.Linear(5, 3), "weight", RowL2Ball(0.5))
    with torch.no_grad():
        layer.weight.normal_(0, 10)
        layer.weight[0] *= 1e-4
        kept = layer.weight[0].clone()
    dplip.project(layer)
    assert torch.equal(layer.weight[0], kept)
    assert float(layer.weight[1].detach().norm()) == pytest.approx(0.5, rel=1e-6)
    assert float(layer.weight.detach().norm(dim=1).max()) <= 0.5
