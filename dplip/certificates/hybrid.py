"""The hybrid bound: intervals up to an articulation point of a model, and norms from the point to the scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from dplip.certificates.articulation import articulation_points
from dplip.certificates.intervals.box import Box
from dplip.norms import Norms
from dplip.propagation import Walk
from dplip.rounding.walk import by_pair

SHARE = 0.25
"""A point is used if norms are tighter than intervals while this share of its entries moves."""


class HybridBound:
    """A bound of the change of scores that combines intervals and norms at the articulation points of a model.

    Before an articulation point, intervals bound the change of every entry. Unlike a Lipschitz constant, they use that
    a pixel at the end of its range cannot move outwards, and that most maxima do not move. After it, the norm of the
    scores' gradient bounds the change of the scores, where intervals become loose at every linear layer. The bound is
    tight for a model that starts with order statistics and ends with layers bounded in l2.

    Args:
        walk: the model, in evaluation mode.
        seeds: node -> the cotangent norms there of the differences of scores (K^2 entries, or one).
        classes: K.
    """

    def __init__(self, walk: Walk, seeds: Mapping[fx.Node, Norms], classes: int) -> None:
        self._slopes: dict[fx.Node, list[Tensor]] = {}
        cotangents = walk.cotangents(seeds)
        for node in articulation_points(walk):
            v = cotangents.get(node)
            # If a share f of the n entries moves by |d|_inf, |d|_2 = sqrt(f n) |d|_inf. So l2 is tighter than
            # l-infinity, in which intervals are never looser, if f < (|v|_1 / |v|_2)^2 / n. For distances f is small.
            if isinstance(v, Norms) and bool(torch.as_tensor(v.l1 >= math.sqrt(SHARE * v.size) * v.l2).any()):
                self._slopes[node] = [by_pair(bound, classes) for bound in (v.l1, v.l2, v.linf)]

    def __bool__(self) -> bool:
        return bool(self._slopes)

    def holds(
        self, perturbed: Mapping[fx.Node, Any], nominal: Mapping[fx.Node, Any], gaps: Tensor, top: Tensor
    ) -> Tensor:
        """Whether no score overtakes the highest while every value stays in its box, shape (batch,).

        Args:
            perturbed, nominal: the boxes for the inputs around x, and for x.
            gaps: ``z_y - z_j`` at x minus its rounding, shape (batch, classes).
            top: the predicted class y, shape (batch,).

        Proof: let h be the value at an articulation point for x, and h' for another input. Both lie in their boxes,
        which bounds every entry of d = h' - h. The scores are functions of h alone, and the norms of the gradient v of
        z_y - z_j in h are within the slopes, so z_y - z_j changes by at most
        ``min(|v|_1 |d|_inf, |v|_2 |d|_2, |v|_inf |d|_1)``.
        """
        kept = torch.zeros(len(gaps), dtype=torch.bool)
        for node, slopes in self._slopes.items():
            d = _change(perturbed[node], nominal[node])
            sizes = [torch.linalg.vector_norm(d, p, 1, keepdim=True) * (1 + 1e-9) for p in (math.inf, 2, 1)]
            change = torch.stack([s[top] * n for s, n in zip(slopes, sizes, strict=True)]).amin(0)
            others = torch.ones_like(gaps, dtype=torch.bool).scatter_(1, top[:, None], False)
            kept |= ((gaps > change) | ~others).all(1)
        return kept


def _change(perturbed: Box, nominal: Box) -> Tensor:
    """The largest distance of every entry between a value in one box and a value in the other."""
    return torch.maximum(perturbed.upper - nominal.lower, nominal.upper - perturbed.lower).flatten(1)
