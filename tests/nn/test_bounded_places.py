"""Bounded layers where an example's place in the batch, or what is set later, could break their bounds."""

from typing import Any

import pytest
import torch
from helpers.bare import Bare
from helpers.clipped import unbounded
from torch import Tensor, nn

import dplip.nn as dn
from dplip.errors import ConfigurationError, MixedExamplesError
from dplip.separation import Watch

B, T, D = 8, 64, 7


def watched(model: nn.Module, x: Tensor) -> Tensor:
    with Watch([x], len(x), model):
        output: Tensor = model(x)
    return output


def late(x: Tensor) -> Tensor:
    return (torch.arange(len(x)) >= 4).long()


LOOKED_UP = {
    "layer": Bare(lambda m, x: x + m.table(late(x)), table=nn.Embedding(3, D)),
    "function": Bare(lambda m, x: x + nn.functional.embedding(late(x), m.table), table=(3, D)),
    "positions too": Bare(lambda m, x: x[:, None] + m.table(late(x)[:, None].expand(-1, 2)), table=nn.Embedding(3, D)),
}


@pytest.mark.parametrize("name", LOOKED_UP)
def test_a_row_that_is_looked_up_by_an_example_s_place_in_the_batch_is_refused(name):
    with pytest.raises(MixedExamplesError, match="its place in the batch"):
        watched(dn.bound_gradients(LOOKED_UP[name]), torch.randn(B, D))


def test_rows_by_constants_that_are_the_same_for_each_example_are_bounded():
    model: Any = Bare(lambda m, x: x + m.table(torch.arange(3).expand(len(x), 3)), table=nn.Embedding(3, D))
    x = torch.randn(B, 3, D)
    output = watched(dn.bound_gradients(model, 0.5), x)
    assert not unbounded(output, model)
    v = 100 * torch.eye(B)[0][:, None, None].expand(B, 3, D)
    assert 0.49 < float(torch.autograd.grad(output, list(model.parameters()), v)[0].norm()) <= 0.5


def test_copies_are_as_many_as_the_examples():
    """Two copies for one example would add two radii."""
    model: Any = Bare(lambda m, x: (dn.per_example(m.p, 2 * len(x), 1.0).view(2, len(x), D) * x).sum(0), p=(D,))
    with pytest.raises(ConfigurationError, match=r"examples=16\): there are 8"):
        watched(model, torch.randn(B, D))


@pytest.mark.parametrize("radius", [-1.0, 0.0, 1e-30, float("inf"), float("nan")])
def test_a_radius_that_was_set_to_no_radius_is_refused(radius):
    linear, convolution = dn.BoundedLinear(D, 2), dn.BoundedConv1d(D, 2, 1)
    bare: Any = dn.bound_gradients(Bare(lambda m, x: x @ m.p, p=(D, 2)))
    linear.radius = convolution.radius = bare.p.radius = radius
    for layer, shape in ((linear, (B, D)), (convolution, (B, D, 3)), (bare, (B, D))):
        with pytest.raises(ConfigurationError, match="radius="):
            layer(torch.randn(shape))


EQUATIONS = {"btd,d": (D,), "btd,de": (D, 2), "...d,de->...e": (D, 2), "...d,ed->...e": (3, D), "btd,td->bt": (3, D)}


@pytest.mark.parametrize("equation", EQUATIONS)
def test_equations_without_a_result_or_with_dots_are_torch_s(equation):
    model: Any = Bare(lambda m, x: torch.einsum(equation, x, m.p), p=EQUATIONS[equation])
    x = torch.randn(B, 3, D)
    expected = model(x)
    output = watched(dn.bound_gradients(model, 0.5), x)
    torch.testing.assert_close(output, expected)
    assert not unbounded(output, model)


@pytest.mark.parametrize("layer", [nn.InstanceNorm1d(D, affine=True), nn.InstanceNorm2d(D, affine=True)])
def test_instance_normalisation_is_by_one_example_s_own_statistics(layer):
    x = torch.randn(B, D, *(5, 4)[: 1 + isinstance(layer, nn.InstanceNorm2d)])
    expected = layer(x)
    torch.testing.assert_close(watched(dn.bound_gradients(layer), x), expected)


def test_a_normalisation_may_have_no_scale():
    x = torch.randn(B, 4, 5)
    for layer, stock in ((dn.BoundedGroupNorm(2, 4, affine=False), nn.GroupNorm(2, 4, affine=False)),):
        torch.testing.assert_close(layer(x), stock(x))


CANCELLING = {
    "linear": lambda: nn.Linear(D, D),
    "conv1d": lambda: Bare(lambda m, x: m.c(x.permute(1, 2, 0)).permute(2, 0, 1), c=nn.Conv1d(D, D, 1)),
    "norm": lambda: nn.LayerNorm(D),
    "sum": lambda: Bare(lambda m, x: x + m.p, p=(D,)),
    "sum in another type": lambda: Bare(lambda m, x: x + m.p.double(), p=(1, 1, D)),
    "sum with flattened positions": lambda: Bare(lambda m, x: (x.flatten(0, 1) + m.p).view(x.shape), p=(1, D)),
}


@pytest.mark.parametrize("name", CANCELLING)
def test_terms_that_cancel_round_no_further_in_another_batch(name):
    """Positions in front: the order of a sum over them depends on the number of examples."""
    model = dn.bound_gradients(CANCELLING[name](), 1.0)
    generator = torch.Generator().manual_seed(0)
    x, half = torch.randn(T, B, D, generator=generator), 1e9 * torch.randn(T // 2, B, D, generator=generator)
    v = torch.cat([half, -half[torch.randperm(T // 2, generator=generator)]])

    def of(some: slice) -> list[Tensor]:
        given = x[:, some].transpose(0, 1).contiguous()
        with Watch([given], len(given), model):
            output = model(given.transpose(0, 1))
        return list(torch.autograd.grad(output, list(model.parameters()), v[:, some].contiguous()))

    for more, less in zip(of(slice(B)), of(slice(1, B)), strict=True):
        assert float((more - less).norm()) <= 1 + 1e-3
