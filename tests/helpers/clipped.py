"""What bounded layers must do, computed one example at a time from torch's own gradients."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from dplip import nn as dn
from dplip.nn.bounded.enforcing import is_enforcing


def clipped_sum(layer: nn.Module, inputs: tuple[Tensor, ...], v: Tensor, radius: float) -> list[Tensor]:
    """Per parameter of a stock layer, the sum of each example's gradient, scaled into the radius; in float64."""
    layer = copy.deepcopy(layer).double()
    inputs = tuple(x.double().contiguous() if x.is_floating_point() else x for x in inputs)
    parameters = list(layer.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    for i in range(len(v)):
        given = torch.autograd.grad(layer(*(x[i : i + 1] for x in inputs)), parameters, v[i : i + 1].double())
        for sums, g in zip(total, given, strict=True):
            sums += g * min(1.0, radius / max(float(g.norm()), 1e-300))
    return total


def gradients(layer: nn.Module, inputs: tuple[Tensor, ...], v: Tensor) -> list[Tensor]:
    """Per parameter, the gradient for an output cotangent."""
    return list(torch.autograd.grad(layer(*inputs), list(layer.parameters()), v))


def require_clipped(stock: nn.Module, *inputs: Tensor, radius: float, size: float = 1.0) -> None:
    """The bounded layer adds up each example's gradient, scaled into the radius, and reaches it."""
    bounded = dn.bound_gradients(copy.deepcopy(stock), radius)
    v = torch.randn(stock(*inputs).shape, generator=torch.Generator().manual_seed(3)) * size
    for got, wanted in zip(gradients(bounded, inputs, v), clipped_sum(stock, inputs, v, radius), strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-3, atol=2e-5 * radius * len(v))
    for i in range(len(v)):
        one = tuple(x[i : i + 1] for x in inputs)
        alone = clipped_sum(stock, one, v[i : i + 1], radius)
        for got, wanted in zip(gradients(bounded, one, v[i : i + 1]), alone, strict=True):
            norm = float(got.double().norm())
            assert norm <= radius and norm >= 0.99 * float(wanted.norm())


VIEWS = ("Alias", "Permute", "Select", "Slice", "Split", "Squeeze", "T", "Transpose", "Unbind", "Unsqueeze", "View")


def unbounded(output: Tensor, model: nn.Module) -> set[str]:
    """The names of the parameters that a node of the autograd graph sends a gradient without bounding it."""
    names = {id(p): name for name, p in model.named_parameters()}
    found, seen, left = set(), set(), [output.grad_fn]
    while left:
        node: Any = left.pop()
        if node in seen or node is None:
            continue
        seen.add(node)
        enforcing = is_enforcing(node)
        for position, (following, _) in enumerate(node.next_functions):
            if enforcing and position >= type(node)._forward_cls.given:
                while following is not None and type(following).__name__.partition("Backward")[0] in VIEWS:
                    ((following, _),) = following.next_functions
            elif following is not None and hasattr(following, "variable"):
                found.add(names[id(following.variable)])
            left.append(following)
    return found
