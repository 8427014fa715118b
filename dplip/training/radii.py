"""Radii that follow the gradients: a controller of each layer's radius, by the slack that every step releases.

The noisy sum of a layer's slack coordinates (:mod:`dplip.nn.bounded.slack`), divided by the expected batch size and the
radius, estimates the mean of ``sqrt(1 - min(n / r, 1)^2)`` over examples: 1 if all gradients are far smaller than the
radius, 0 if all are scaled down to it. The radius is multiplied by ``exp(-rate (share - TARGET))``, so that it settles
where the share is ``TARGET``. What it reads is public after the step, and the radius is a public number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dplip.nn.bounded.slack import adaptive_layers, new_slack

TARGET = 0.6
"""The mean share of slack that a radius is steered to.

A classifier's gradients are tiny where it is right and sure of it, which is for most examples. A radius at the median
would follow those to 0, and every example would count alike; it has to stand among the gradients of the examples that
are not yet learned."""

RATE = 0.5
"""A step changes a radius by no more than this factor's exponential."""

LEAST, MOST = 1e-8, 1e8
"""The limits of an adapted radius."""

NOISY = 0.1
"""Where the noise of a share is larger than this, the radius moves more slowly, in proportion."""


class Radii:
    """The adaptive radii of a model, and the leaves that their slack coordinates arrive in.

    Args:
        model: its layers that ``bound_gradients(model, radius="auto")`` made adaptive are followed.
        expected_batch_size: the public number that sums are divided by.

    Guarantee: reads noisy sums alone. A step's noise is for the radii of its own backward pass: they change at its end.
    """

    def __init__(self, model: nn.Module, expected_batch_size: float) -> None:
        self._model, self._size = model, expected_batch_size
        for _, layer, _ in self.layers():
            layer.slack = new_slack(next(layer.parameters()).device)  # the model may have been moved
        self.shares: dict[str, float] = {}

    def layers(self) -> list[tuple[str, Any, str]]:
        """Path, layer, and name of the parameter whose gradient the layer's slack belongs to."""
        return list(adaptive_layers(self._model))

    def __bool__(self) -> bool:
        return bool(self.layers())

    def leaves(self) -> list[tuple[str, Tensor]]:
        """The leaves that sums of slack coordinates arrive in, under names that no parameter has."""
        return [(_name(path), layer.slack) for path, layer, _ in self.layers()]

    def sums(self, sums: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, str]]:
        """The sums of slack coordinates, by path, with the parameter whose noise each gets; the leaves are cleared.

        Args:
            sums: what parts of the batch brought, by the names of :meth:`leaves`; what is in the leaves, if not there.
        """
        found = {}
        for path, layer, owner in self.layers():
            total = sums.get(_name(path), layer.slack.grad)
            total = torch.zeros_like(layer.slack) if total is None else total
            found[path], layer.slack.grad = (total.detach(), owner), None
        return found

    def clear(self) -> None:
        """Forget what has arrived."""
        for _, layer, _ in self.layers():
            layer.slack.grad = None

    def present(self) -> dict[str, float]:
        """The radius of each adaptive layer."""
        return {path: layer.radius for path, layer, _ in self.layers()}

    def set(self, radii: Mapping[str, float]) -> None:
        """Set the radii of layers by their paths."""
        for path, layer, _ in self.layers():
            layer.radius = radii.get(path, layer.radius)

    def next(self, noisy: Mapping[str, Tensor], stds: Mapping[str, float], uses: Mapping[str, int]) -> dict[str, float]:
        """The radii of the next step.

        Args:
            noisy: the noisy sums of slack coordinates, by path.
            stds: the deviations of the noise, by parameter.
            uses: how often an example uses each parameter.
        """
        found = {}
        for path, layer, owner in self.layers():
            reach = layer.radius * uses.get(owner, 1) * self._size
            share, noise = float(noisy[path]) / reach, stds[owner] / reach
            self.shares[path] = share = min(1.0, max(0.0, share))
            rate = RATE * min(1.0, NOISY / noise) if noise else RATE
            found[path] = min(MOST, max(LEAST, layer.radius * math.exp(-rate * (share - TARGET))))
        return found


_MOMENTS = {"exp_avg": 1, "exp_inf": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2, "noise": 2}
"""What Adam and its kin keep of gradients: the power of a gradient that it is of."""


def change_units(optimizer: Optimizer, parameters: Mapping[str, Tensor], deviations: Mapping[str, float]) -> None:
    """Bring Adam's moments into units of the noise of the step that the optimizer is about to take.

    Most of a second moment is noise. Radii that shrink thirtyfold shrink the noise as much, and what was averaged
    before would hold back every step until it is forgotten, which takes a thousand steps. So when the deviation of a
    parameter's noise changes by a factor, the moments change with it, and Adam moves as if each gradient had been
    divided by the deviation of its own noise. All of it is public.
    """
    kept: Any = optimizer.state  # the units are saved and loaded with the moments
    units = kept.get("deviations", {})
    for name, p in parameters.items():
        before, now, state = units.get(name, 0.0), deviations[name], optimizer.state.get(p, {})
        if before and now and before != now:
            state.update({k: state[k] * (now / before) ** power for k, power in _MOMENTS.items() if k in state})
    kept["deviations"] = dict(deviations)


def _name(path: str) -> str:
    return f"{path}: slack"
