"""Margins behind boxes: intervals up to a cut of the model, norms of the deviation from there on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from dplip.certificates.intervals.box import Box
from dplip.norms import Norms
from dplip.propagation import Walk

SHARE = 0.25
"""A cut is kept where a norm can tell more than intervals while this share of its entries moves."""


class Cuts:
    """The values that all of a model's later ones are computed from, with how fast the scores change in them.

    Intervals lose at every linear layer what a norm keeps, and keep what a Lipschitz constant of the whole model loses:
    that a pixel at the end of its range cannot move, that most maxima do not. So a model that starts with order
    statistics and ends with layers bounded in l2 is certified best through both.

    Args:
        walk: the model, in evaluation mode.
        seeds: where the cotangents of the differences of scores are known, with their norms (K^2 entries, or one).
        classes: K.
    """

    def __init__(self, walk: Walk, seeds: Mapping[fx.Node, Norms], classes: int) -> None:
        self._slopes: dict[fx.Node, list[Tensor]] = {}
        cotangents = walk.cotangents(seeds)
        for node in cuts(walk):
            v = cotangents.get(node)
            # With a share f of the n entries moving, |d|_2 = sqrt(f n) |d|_inf: l2 tells more than l-infinity, in which
            # intervals are never looser, while f < (|v|_1 / |v|_2)^2 / n. Of distances that share is small.
            if isinstance(v, Norms) and bool(torch.as_tensor(v.l1 >= math.sqrt(SHARE * v.size) * v.l2).any()):
                table = [torch.as_tensor(n, dtype=torch.float64).flatten() for n in (v.l1, v.l2, v.linf)]
                self._slopes[node] = [t.expand(classes**2).reshape(classes, classes) for t in table]

    def __bool__(self) -> bool:
        return bool(self._slopes)

    def hold(self, moved: Mapping[fx.Node, Any], still: Mapping[fx.Node, Any], gaps: Tensor, top: Tensor) -> Tensor:
        """Whether no score overtakes the highest while every value stays in its box, shape (batch,).

        Args:
            moved, still: the boxes for the inputs around x, and for x alone.
            gaps: ``z_y - z_j`` at x less its rounding, shape (batch, classes).
            top: y, shape (batch,).

        Proof: let h be the value at a cut for x and h' for another input. Both lie in their boxes, which bounds every
        entry of d = h' - h; the scores are a function of h alone, whose gradient of z_y - z_j has dual norms within the
        slopes, so z_y - z_j changes by at most ``min(|v|_1 |d|_inf, |v|_2 |d|_2, |v|_inf |d|_1)``.
        """
        kept = torch.zeros(len(gaps), dtype=torch.bool)
        for node, slopes in self._slopes.items():
            d = _deviation(moved[node], still[node])
            sizes = [torch.linalg.vector_norm(d, p, 1, keepdim=True) * (1 + 1e-9) for p in (math.inf, 2, 1)]
            change = torch.stack([s[top] * n for s, n in zip(slopes, sizes, strict=True)]).amin(0)
            others = torch.ones_like(gaps, dtype=torch.bool).scatter_(1, top[:, None], False)
            kept |= ((gaps > change) | ~others).all(1)
        return kept


def _deviation(moved: Box, still: Box) -> Tensor:
    """The largest change of every entry from a value in the one box to a value in the other."""
    return torch.maximum(moved.upper - still.lower, still.upper - moved.lower).flatten(1)


def cuts(walk: Walk) -> list[fx.Node]:
    """The nodes that every later value which depends on the input depends on through them alone."""
    order = {step.node: i for i, step in enumerate(walk.calls())}
    found, reach = [], -1
    reads = [order.get(user, -1) for user in walk.start().users]
    reach = max([reach, *reads])
    for node, i in order.items():
        if reach <= i and node is not walk.output():
            found.append(node)
        reach = max([reach, *(order.get(user, -1) for user in node.users)])
    return found
