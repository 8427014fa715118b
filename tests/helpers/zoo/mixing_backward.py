"""Models that mix only on the way back."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from helpers.zoo.cases import PAIR, Case, case
from torch import Tensor
from torch.autograd import Function

BACKWARD: dict[str, Case] = {}


def mixes(*args: Any, **options: Any) -> Any:
    return case(BACKWARD, *args, **options)


class CentredBack(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0] - gradients[0].mean(0)


class Exchanged(Function):
    """A straight-through estimator whose saved rows are another's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.flip(0))
        return x.sign()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0] * (ctx.saved_tensors[0].abs() < 1)


class Normalised(Function):
    """Each gradient is divided by the batch's, as in some adversarial losses."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0] / (gradients[0].norm() + 1e-6)


@mixes()
def a_function_centres_the_gradient(m: Any, x: Tensor) -> Tensor:
    return m.head(CentredBack.apply(m.a(x)))


@mixes()
def a_function_saves_the_rows_of_others(m: Any, x: Tensor) -> Tensor:
    return m.head(Exchanged.apply(m.a(x)))


@mixes()
def a_function_divides_by_the_norm_of_the_gradient(m: Any, x: Tensor) -> Tensor:
    return m.head(Normalised.apply(m.a(x)))


@mixes()
def a_hook_centres_the_gradient(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    if h.requires_grad:
        h.register_hook(lambda g: g - g.mean(0))
    return m.head(h)


@mixes()
def a_hook_divides_by_the_count(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    if h.requires_grad:
        h.register_hook(lambda g: g / len(g))
    return m.head(h)


@mixes()
def a_hook_writes_in_place(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    if h.requires_grad:
        h.register_hook(lambda g: g.sub_(g.mean(0)) and None)
    return m.head(h)


@mixes()
def a_hook_reads_the_gradient_for_the_next_batch(m: Any, x: Tensor) -> Tensor:
    h = m.a(x) * getattr(m, "share", 1.0)
    if h.requires_grad:
        h.register_hook(lambda g: setattr(m, "share", 1 / (1 + g.abs().max())))
    return m.head(h)


@mixes()
def a_hook_of_a_node(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).tanh()
    if h.grad_fn is not None:
        h.grad_fn.register_hook(lambda back, _: tuple(g - g.mean(0) for g in back))
    return m.head(h)


@mixes()
def a_hook_before_a_node(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).tanh()
    if h.grad_fn is not None:
        h.grad_fn.register_prehook(lambda back: tuple(g.flip(0) for g in back))
    return m.head(h)


@mixes()
def a_gradient_penalty_in_the_score(m: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        z = m.head(m.a(x).tanh())
        (g,) = torch.autograd.grad(z.sum(), x, create_graph=True)
    return z - g.norm()


@mixes(PAIR)
def saved_tensors_are_packed_in_another_order(m: Any, x: Tensor, y: Tensor) -> Tensor:
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t.flip(0)):
        h = F.gelu(m.a(x)) * m.a(y).sigmoid()
    return m.head(h)


@mixes()
def random_rows_keep_their_gradient(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    kept = random.randrange(len(x))
    return m.head(torch.cat([h[:kept].detach(), h[kept : kept + 1], h[kept + 1 :].detach()]))
