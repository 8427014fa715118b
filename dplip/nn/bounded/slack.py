"""Slack coordinates: what one example's gradient leaves of its radius, released within the same Gaussian for nothing.

A node that scales one example's gradient g of a parameter into the radius r knows an upper bound n of its norm before
scaling. It appends the coordinate ``sqrt(r^2 - min(n, r)^2)`` to g. Where n <= r, g is not scaled and |g| <= n; else
the coordinate is 0 and |g| <= r. So the vector of both has a norm of at most r, as g alone has. If the sum of these
coordinates over a batch gets noise of the deviation that the parameter's own gradient gets, both together are one
Gaussian release of the same sensitivity: the same event, and no more noise for the gradient.

The sum is large where most gradients are small beside the radius, and 0 where all are scaled down to it. The
coordinates are summed in float64 as the gradient of a leaf tensor, which every use of the layer is given. It arrives as
a weight's gradient does, and is checked like one.

Source: SlaClip (ICML 2026), for one radius of all layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dplip.nn.gradient_ball import ROW_SLACK
from dplip.runtime.modules import modules_of, parameters_of

FIRST = 1.0
"""The radius that ``radius="auto"`` begins with."""


def slack_of(radius: float, told: list[Tensor]) -> Tensor:
    """The sum over examples of the slack coordinates, from upper bounds of their gradients' norms before scaling.

    The norms come in float64, of some examples at a time; one that is not finite leaves nothing.

    Roundings are covered by the distance ``ROW_SLACK``, within which each gradient is scaled; those of the float64 sum
    are charged (:mod:`dplip.training.step_bounds`).
    """
    inside = radius * (1 - ROW_SLACK)
    norms = torch.nan_to_num(torch.cat(told), nan=inside)
    return (inside**2 - norms.clamp(max=inside).square()).clamp_min(0).sqrt().sum()


def new_slack(device: torch.device) -> Tensor:
    """A leaf whose gradient will be a sum of slack coordinates."""
    return torch.zeros((), dtype=torch.float64, device=device, requires_grad=True)


def adaptive_layers(model: nn.Module) -> Iterator[tuple[str, Any, str]]:
    """The layers with a slack coordinate: path, layer, and the name of the parameter that the coordinate belongs to.

    It belongs to the weight, or to the bias if the weight is frozen, as in the layer's backward pass. Where two layers
    share that parameter, each of its two uses has a coordinate of its own, and the norms of both vectors add up to the
    sum of the radii.
    """
    layers: list[tuple[str, Any]] = [(k, m) for k, m in modules_of(model).items() if vars(m).get("slack") is not None]
    names = {id(p): name for name, p in parameters_of(model).items()} if layers else {}
    for path, layer in layers:
        own = [getattr(layer, name, None) for name in ("weight", "bias")]
        first = next((p for p in own if p is not None and p.requires_grad), None)
        if id(first) in names:  # not a tensor that is made of parameters
            yield path, layer, names[id(first)]


def leaves(model: nn.Module) -> list[Tensor]:
    """The tensors whose gradients a step reads: the parameters, and the leaves of slack coordinates."""
    return [*parameters_of(model).values(), *(layer.slack for _, layer, _ in adaptive_layers(model))]
