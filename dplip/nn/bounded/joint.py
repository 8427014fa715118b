"""The two backward passes of a joint radius: the first measures, the second lets through.

The output of a model goes through a node that leaves values and cotangents as they are. When a backward pass comes to
it, it runs one of its own over the graph behind, in which enforcing nodes send parameters nothing, and note an upper
bound ``n_u`` of the norm of each example's gradient of each use u of a parameter. With ``n_p`` the sum of ``n_u`` over
the uses of a parameter p, ``n^2 = sum_p n_p^2`` bounds the norm of all of the example's gradient. It leaves each use a
share ``s_u = n_u min(1, R / n)``, a number for each example. Then the pass goes on, and each enforcing node scales each
example's gradient into the share, as it would into a radius, and uses it up.

Proof of the bound. Whatever arrives in the second pass, what an example adds to parameter p is at most the sum of the
shares of its uses in norm (triangle inequality; selections between a node and a parameter keep norms). So all that it
adds is at most ``sqrt(sum_p (sum_u s_u)^2) = min(1, R / n) n <= R``. Nothing is assumed of the first pass: another mask
or another state only makes shares that fit the second pass badly. A node without a share sends nothing. Shares are
computed in float64, whose roundings ``ROW_SLACK`` covers; an example whose norm is not finite, or beyond 1e30, gets
none.

Proof that examples stay apart: the share of an example is a function of the norms of its own gradients alone.

Where both passes agree, each ``n_u`` in the second is that of the first, so all of an example's gradient is multiplied
by ``min(1, R / n)``. Where n is its norm (one use of each parameter, exact norms), that is clipping to R.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils._pytree import tree_flatten, tree_unflatten

from dplip.errors import ConfigurationError
from dplip.nn.bounded.enforcing import LARGEST_NORM, JointRadius
from dplip.nn.gradient_ball import ROW_SLACK

LEAST = 1e-300
"""The smallest share: a factor is a quotient of a share and a norm, one of which must not be 0."""


def joint_radius(model: nn.Module) -> JointRadius | None:
    """The joint radius of a model, if some layer or parameter has one."""
    held = (vars(one).get("radius") for one in chain(model.modules(), model.parameters()))
    return next((radius for radius in held if isinstance(radius, JointRadius)), None)


def measured(model: nn.Module, output: Any) -> Any:
    """A model's output, the same, whose backward pass measures first if the model has a joint radius."""
    radius = joint_radius(model)
    leaves, tree = tree_flatten(output)
    found = [i for i, t in enumerate(leaves) if isinstance(t, Tensor) and t.requires_grad]
    if radius is None or not found:
        return output
    trained = [p for p in model.parameters() if p.requires_grad]
    for i, t in zip(found, Measured.apply(radius, trained, *(leaves[i] for i in found)), strict=True):
        leaves[i] = t
    return tree_unflatten(leaves, tree)


class Measured(torch.autograd.Function):
    """The identity, whose backward pass first leaves each example its shares of a joint radius."""

    @staticmethod
    def forward(ctx: Any, radius: JointRadius, trained: list[Tensor], *outputs: Tensor) -> tuple[Tensor, ...]:
        ctx.radius_of_all, ctx.trained, ctx.outputs = radius, trained, outputs
        ctx.nodes = []  # that have shares
        ctx.set_materialize_grads(False)
        return tuple(t.view_as(t) for t in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        radius: JointRadius = ctx.radius_of_all
        if radius.measured is not None:
            raise ConfigurationError(
                f"{radius}: the model was called on what it computed itself, so an example would have two shares. Call "
                "it once for each example."
            )
        for node in ctx.nodes:  # what an earlier pass over the same graph has left
            node.shares.clear()
        radius.measured, radius.used = [], True
        try:
            _run(ctx.outputs, gradients, ctx.trained)
            found = radius.measured
        finally:
            radius.measured = None
        ctx.nodes = _share(float(radius), found)
        return None, None, *gradients


def _run(outputs: Iterable[Tensor], gradients: Iterable[Tensor | None], trained: Iterable[Tensor]) -> None:
    """A backward pass over the graph of some outputs that keeps the graph, and brings no gradient to a weight."""
    pairs = [(t, g) for t, g in zip(outputs, gradients, strict=True) if g is not None]
    given, sent = [t for t, _ in pairs], [g.detach() for _, g in pairs]
    # Edges in place of the parameters, whose class torch would leave aside in all that runs, checkpoints included.
    edges = [get_gradient_edge(p) for p in trained]
    if pairs:
        torch.autograd.grad(given, edges, sent, retain_graph=True, allow_unused=True)


def _share(radius: float, found: list[tuple[Any, int, Tensor]]) -> list[Any]:
    """Leave each use its shares; returns the nodes that have some."""
    counts = sorted({len(norms) for _, _, norms in found})
    if len(counts) > 1:
        raise ConfigurationError(
            f"JointRadius({radius:g}): layers have their examples along axes of {counts} entries, so nothing says "
            "which belong to one. Bring the batch to axis 0 of what enters each layer."
        )
    of_parameters: dict[int, Tensor] = {}
    for node, edge, norms in found:
        p = id(_parameter(node, edge))
        of_parameters[p] = of_parameters[p] + norms if p in of_parameters else norms
    squares = sum((norms.square() for norms in of_parameters.values()), start=torch.zeros(()))
    of_all, inside = squares.sqrt(), radius * (1 - ROW_SLACK)
    # Larger by what a node stays inside of its share: an example within the radius is multiplied by 1.
    factor = inside / of_all.clamp_min(inside) / (1 - ROW_SLACK)
    for node, edge, norms in found:
        share = torch.where(of_all <= LARGEST_NORM, norms * factor, 0.0)  # 0 for NaN
        node.shares = {**vars(node).get("shares", {}), edge: share.clamp_min(LEAST)}
    return [node for node, _, _ in found]


def _parameter(node: Any, edge: int) -> Any:
    """The parameter behind an edge, the same for all its uses."""
    following = node.next_functions[edge][0]
    while not hasattr(following, "variable"):
        following = following.next_functions[0][0]
    return following.variable
