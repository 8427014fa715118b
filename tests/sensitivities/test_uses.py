"""Uses of parameters are read off the graph that ran: radii add up, and nothing else may send a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dplip.errors import UnboundedOperationError
from dplip.nn import BoundedLinear
from dplip.nn.bounded.linear import LinearGradients
from dplip.sensitivities.uses import uses_of

X = torch.randn(4, 3)


def bounds(outputs: list[Tensor], *layers: nn.Module) -> dict[str, float]:
    names = {id(p): f"{i}.{n}" for i, layer in enumerate(layers) for n, p in layer.named_parameters()}
    return {name: use.bound for name, use in uses_of(outputs, names).items()}


def layer(radius: float = 1.0, out: int = 3) -> BoundedLinear:
    return BoundedLinear(3, out, bias=False, radius=radius).train()


def test_radii_add_up_over_uses_whatever_lies_between() -> None:
    a, b = layer(0.5), layer(2.0)
    z = a(b(a(X)).softmax(1)) * a(X).exp()
    assert bounds([z], a, b) == {"0.weight": 1.5, "1.weight": 2.0}
    assert uses_of([z], {id(a.weight): "w"})["w"].summation.uses == 3


def test_a_selection_of_a_parameter_is_a_use_of_it() -> None:
    a, w = layer(1.0), nn.Parameter(torch.randn(6, 3))
    halves = w.chunk(2)
    z = sum(functional(a, part) for part in (halves[0], halves[1], w[2:5], w.t()[:, 1:4].t()))
    assert isinstance(z, Tensor)
    assert uses_of([z], {id(w): "w"})["w"].bound == 4.0


def functional(like: BoundedLinear, weight: Tensor) -> Tensor:
    """The layer's node with another weight."""
    other = BoundedLinear(3, 3, bias=False, radius=like.radius).train()
    del other._parameters["weight"]
    other.__dict__["weight"] = weight
    return other(X)


Parts = Callable[[Tensor], list[Tensor]]

DISJOINT: dict[str, tuple[Parts, float]] = {
    "slices": (lambda w: [w[:3], w[3:6], w[6:]], 3**0.5),
    "slices from the end": (lambda w: [w[:-6], w[-6:-3], w[-3:]], 3**0.5),
    "chunks": (lambda w: list(w.chunk(3)), 3**0.5),
    "a split by sizes": (lambda w: list(w.split([2, 4, 3])), 3**0.5),
    "indices": (lambda w: (lambda stack: [stack[i] for i in (0, 1, -1)])(w.view(3, 3, 3)), 3**0.5),
    "a part of a part": (lambda w: [w[:3], *w[3:].chunk(2)], 3**0.5),
    "a part twice": (lambda w: [w[:3], w[:3], w[3:6]], 5**0.5),
    "parts of one transpose": (lambda w: (lambda t: [t[:, :4].t(), t[:, 4:].t()])(w.t()), 2**0.5),
}
OTHERS: dict[str, tuple[Parts, float]] = {
    "the whole and a part": (lambda w: [w, w[-9:-6]], 2.0),
    "an entry in common": (lambda w: [w[:4], w[3:6], w[6:]], 5**0.5),
    "a long part over others": (lambda w: [w[:8], w[1:4], w[5:8]], 3.0),
    "an index from the front and the end": (lambda w: (lambda s: [s[-1], s[2]])(w.view(3, 3, 3)), 2.0),
    "rows and columns": (lambda w: [w[:1], w[:, 1:]], 2.0),
    "rows and entries of a stack": (lambda w: [w[:3], *w.view(3, 3, 3).unbind()], 4.0),
    "parts of two transposes": (lambda w: [w.t()[:, :3], w.t()[:, 3:6]], 2.0),
    "every other row": (lambda w: [w[::2], w[1::2]], 2.0),
}


@pytest.mark.parametrize("name", DISJOINT)
def test_disjoint_parts_of_a_parameter_add_up_by_squares(name: str) -> None:
    found, bound = largest(*DISJOINT[name])
    assert 0.99 * bound <= found <= bound * (1 + 1e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_parts_that_may_overlap_add_up_by_sums(name: str) -> None:
    found, bound = largest(*OTHERS[name])
    assert found <= bound * (1 + 1e-5)


def largest(parts: Parts, expected: float) -> tuple[float, float]:
    """The norm of one example's gradient for large cotangents of all parts' uses, and the bound that is read."""
    w = nn.Parameter(torch.randn(9, 3))
    x = torch.ones(1, 3)
    outputs = [LinearGradients.apply(x[:, : part.shape[1]], part, None, None, 1.0, None) for part in parts(w)]
    bound = uses_of(outputs, {id(w): "w"})["w"].bound
    assert bound == pytest.approx(expected)
    sum(1e3 * y.sum() for y in outputs).backward()
    assert w.grad is not None
    return float(w.grad.norm()), bound


def test_several_outputs_share_a_graph() -> None:
    a, b = layer(0.5), layer(2.0)
    h = a(X)
    assert bounds([h, b(h)], a, b) == {"0.weight": 0.5, "1.weight": 2.0}
    assert bounds([b(h)], a, b) == {"0.weight": 0.5, "1.weight": 2.0}


def test_frozen_parameters_and_eval_are_not_used() -> None:
    a, b = layer(), layer()
    a.requires_grad_(False)
    assert bounds([b(a(X))], b) == {"0.weight": 1.0}
    with pytest.raises(UnboundedOperationError, match=r"0\.weight"):
        bounds([b.eval()(X)], b)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Tensor:
        return v.flip(0)


WRONG = {
    "a sum with the parameter": lambda a: a(X) + a.weight.sum(),
    "the parameter scaled before its use": lambda a: functional(a, a.weight * 2),
    "a copy of the parameter for each row": lambda a: functional(a, a.weight.expand(2, 3, 3).sum(0)),
    "the parameter as an input": lambda a: layer()(a.weight) + a(X).sum(),
    "the parameter itself as an output": lambda a: a.weight.t(),
    "a backward pass of its own": lambda a: Doubled.apply(a(X)),
    "a checkpoint of the old kind": lambda a: checkpoint(a, X.clone().requires_grad_(), use_reentrant=True),
}


@pytest.mark.parametrize("name", WRONG)
def test_another_sender_is_refused(name: str) -> None:
    a = layer()
    with pytest.raises(UnboundedOperationError):
        bounds([WRONG[name](a)], a)


def test_a_parameter_without_a_path_is_not_in_the_result() -> None:
    a, b = layer(), layer()
    assert bounds([b(a(X).detach())], a, b) == {"1.weight": 1.0}
