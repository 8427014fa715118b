"""Constraints go along with a copy, leave the state dict alone, and refuse what cannot hold."""

import copy
import io
import math
from collections.abc import Callable

import pytest
import torch
from helpers.weights import linear, singular, vector_norm
from torch import nn

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
        assert float(singular(m.get_parameter(f"{k}.weight")).max()) <= 1 + 1e-6


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
