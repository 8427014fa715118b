"""Constraints on the weights of a layer, projected after each step at no cost of privacy (post-processing).

A constraint is a child module of the layer, without parameters. It adds nothing to ``state_dict``, and is kept by
``deepcopy``, ``torch.save`` and ``.to``. Bounds are computed from the present weight; a constraint keeps them small.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from dplip.errors import ConfigurationError

M = TypeVar("M", bound=nn.Module)


class Constraint(nn.Module):
    """A set of weights, and the projection onto it.

    Attributes:
        axes: the least number of axes that a parameter must have.
    """

    axes = 2

    def project(self, weight: Tensor, layer: nn.Module) -> None:
        """Move ``weight``, a parameter of ``layer``, into the set, in place."""
        raise NotImplementedError


class Constraints(nn.ModuleDict):
    """The constraints of one layer, by the name of the parameter."""


def constrain(layer: M, name: str, constraint: Constraint) -> M:
    """Attach a constraint to a parameter of a layer, and project it at once.

    Args:
        layer: a module that holds the parameter itself.
        name: the parameter's name in the layer, such as ``"weight"``.
        constraint: such as ``Orthogonal()``.

    Returns:
        The layer.

    Raises:
        ConfigurationError: the layer has no such parameter.
    """
    if not isinstance(layer._parameters.get(name), nn.Parameter):
        raise ConfigurationError(
            f"name={name!r}: {type(layer).__name__} has no such parameter. It has {list(layer._parameters)}."
        )
    weight, held = layer.get_parameter(name), layer._modules.get("constraints")
    if not isinstance(held, Constraints) and hasattr(layer, "constraints"):
        raise ConfigurationError(f"{type(layer).__name__} uses the name 'constraints' itself: rename that.")
    if weight.ndim < constraint.axes:
        raise ConfigurationError(
            f"{name} has shape {tuple(weight.shape)}: {type(constraint).__name__} is for a matrix or a kernel."
        )
    if not bool(weight.isfinite().all()):
        raise ConfigurationError(f"{name} is NaN or infinite: restore finite values.")
    with torch.no_grad():
        constraint.project(weight, layer)
    if not isinstance(held, Constraints):
        held = Constraints()
        layer.add_module("constraints", held)
    held[name] = constraint
    return layer


@torch.no_grad()
def project(model: nn.Module) -> None:
    """Project every constrained parameter of a model onto its set."""
    for layer in model.modules():
        held = layer._modules.get("constraints")
        if isinstance(held, Constraints):
            for name, constraint in held.items():
                if isinstance(constraint, Constraint):
                    constraint.project(layer.get_parameter(name), layer)
