"""Bare parameters: wherever one meets the examples, each adds its own gradient, scaled into the radius."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from helpers.bare import EXACT, OTHERS, Bare, D, T
from helpers.clipped import clipped_sum, unbounded
from torch import Tensor, nn

import dplip.nn as dn
from dplip.errors import MixedExamplesError
from dplip.separation import Watch

ALL = {**EXACT, **OTHERS}


def batch(examples: int = 5) -> Tensor:
    return torch.randn(examples, T, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def watched(model: nn.Module, x: Tensor) -> Tensor:
    with Watch([x], len(x), model):
        output: Tensor = model(x)
    return output


def gradients(model: nn.Module, output: Tensor, v: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(output, list(model.parameters()), v))


@pytest.mark.parametrize("size", [1e-2, 10.0])
@pytest.mark.parametrize("name", EXACT)
def test_each_example_s_gradient_is_scaled_into_the_radius(name, size):
    stock, x = EXACT[name]().double(), batch()
    bounded = dn.bound_gradients(copy.deepcopy(stock), 0.5)
    v = size * torch.randn(stock(x).shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    output = watched(bounded, x)
    torch.testing.assert_close(output, stock(x))
    assert unbounded(output, bounded) == set()
    for got, wanted in zip(gradients(bounded, output, v), clipped_sum(stock, (x,), v, 0.5), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("examples", [1, 4, 5])
@pytest.mark.parametrize("name", ALL)
def test_a_large_radius_leaves_outputs_and_gradients_for_any_number_of_examples(name, examples):
    """Also for as many examples as positions."""
    stock, x = ALL[name]().double(), batch(examples)
    bounded = dn.bound_gradients(copy.deepcopy(stock), 1e6)
    assert list(bounded.state_dict()) == list(stock.state_dict())
    output = watched(bounded, x)
    torch.testing.assert_close(output, stock(x))
    assert unbounded(output, bounded) == set()
    v = torch.randn_like(output)
    for got, wanted in zip(gradients(bounded, output, v), gradients(stock, stock(x), v), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e15, 1e30, float("nan")])
def test_no_example_exceeds_a_radius_for_each_use(name, size):
    bounded, x = dn.bound_gradients(ALL[name](), 0.5), batch(1).float()
    for given in (x, size * x):
        output = watched(bounded, given)
        for g in gradients(bounded, output, size * torch.ones_like(output)):
            assert float(g.double().norm()) <= 0.5 * (3 if name in OTHERS else 1)


def test_a_parameter_keeps_its_identity_and_place():
    model = nn.Sequential(Bare(lambda m, x: x * m.p, p=(D,)), nn.Linear(D, 2))
    p, optimizer = model[0].p, torch.optim.Adam(model.parameters())
    dn.bound_gradients(model, 0.5)
    assert model[0].p is p and type(p) is dn.BoundedParameter and isinstance(p, nn.Parameter) and p.is_leaf
    assert type(model[1].weight) is nn.Parameter and optimizer.param_groups[0]["params"][0] is p
    model(batch(3).float()).sum().backward()
    before = p.detach().clone()
    optimizer.step()
    assert type(p) is dn.BoundedParameter and not torch.equal(before, p)
    model.load_state_dict({k: torch.zeros_like(v) for k, v in model.state_dict().items()})
    assert type(model.state_dict()["0.p"]) is Tensor and not p.any()
    model.double()
    assert model[0].p is p and p.dtype == torch.float64
    dn.bound_gradients(model, 2.0)
    assert p.radius == 0.5


def test_copies_keep_the_radius():
    model = dn.bound_gradients(Holder(), 0.25)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)):
        assert type(other.p) is dn.BoundedParameter and other.p.radius == 0.25 and torch.equal(other.p, model.p)
        assert other.p is not model.p and other.p is other.again


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.randn(D))
        self.again = self.p

    def forward(self, x: Tensor) -> Tensor:
        return x * self.p


def test_without_gradients_it_is_a_plain_tensor():
    model, x = dn.bound_gradients(Holder()), batch().float()
    with torch.no_grad():
        assert type(model.p * 2) is Tensor and torch.equal(model(x), x * model.p.data)
    assert type(model.p.detach()) is Tensor and type(model.p.grad) is type(None)
    model.p.requires_grad_(False)
    assert not model(x).requires_grad
    with torch.no_grad():
        model.p.add_(1).clamp_(max=2)


def test_what_is_frozen_is_left_alone():
    model = Holder().requires_grad_(False)
    assert type(dn.bound_gradients(model).p) is nn.Parameter


def test_a_traced_model_is_traced_as_before():
    model = dn.bound_gradients(Bare(lambda m, x: (m.p * x + x @ m.w) - m.p, p=(D,), w=(D, D)))
    graph = torch.fx.symbolic_trace(model)
    x = batch().float()
    torch.testing.assert_close(graph(x), model(x))


LEFT: dict[str, Bare] = {
    "singular values": Bare(lambda m, x: x * torch.linalg.svdvals(m.p).sum(), p=(D, 2)),
    "a product written over": Bare(lambda m, x: x @ (m.p @ m.q).mul_(2), p=(D, 2), q=(2, D)),
    "an entry for each example": Bare(lambda m, x: x * m.p, p=(5, 1, 1)),
    "written over": Bare(lambda m, x: x + (m.p + 1).mul_(x.mean((1, 2))[:, None, None]), p=(5, 1, 1)),
    "a normalisation of constants": Bare(lambda m, x: x + m.l(torch.eye(D)[0]), l=nn.LayerNorm(D)),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_known_is_left_for_the_reader_of_the_graph(name):
    model, x = dn.bound_gradients(copy.deepcopy(LEFT[name])), batch().float()
    try:
        output = watched(model, x)
    except MixedExamplesError:
        return
    assert unbounded(output, model)


def test_copies_for_examples_are_nobody_else_s():
    """An expansion as long as the batch, along another axis, would bound sums over examples."""
    model, x = Bare(lambda m, x: x + m.p.expand(T, D), p=(D,)), batch(T).float()
    with pytest.raises(MixedExamplesError):
        watched(dn.bound_gradients(model), x)
    torch.testing.assert_close(watched(model, x[:3].clone()), model(x[:3]))


def test_what_was_written_over_is_an_ordinary_tensor():
    model = dn.bound_gradients(Holder())
    value = model.p * 2
    value += torch.ones(D)
    x = batch().float()
    torch.testing.assert_close(value * x, (model.p.data * 2 + 1) * x)


def test_half_precision_meets_a_parameter_in_its_own():
    model: Any = dn.bound_gradients(Bare(lambda m, x: m.p.to(x.dtype) * x @ m.w.to(x.dtype), p=(D,), w=(D, D)), 0.5)
    x = batch(1).to(torch.bfloat16)
    output = watched(model, x)
    for g in gradients(model, output, 100 * torch.ones_like(output)):
        assert output.dtype == torch.bfloat16 and g.dtype == torch.float32 and 0.1 < float(g.norm()) <= 0.5
    with torch.autocast("cpu", torch.bfloat16):
        output = watched(model, batch(1).float())
    assert unbounded(output, model) == set()
