"""The conversion of a model's layers into bounded ones, in place."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from dplip.errors import ConfigurationError
from dplip.nn.bounded.enforcing import checked_radius
from dplip.nn.bounded.slack import FIRST, new_slack
from dplip.rules.registry import HARMLESS

M = TypeVar("M", bound=nn.Module)
C = TypeVar("C", bound=type)

BOUNDED: dict[str, type] = {}
"""The full name of a layer's class -> its bounded counterpart, a subclass of it with the same parameters."""


def bounds(*classes: type | str) -> Callable[[C], C]:
    """A decorator that makes a class the bounded counterpart of others (a name: of a library that may be missing)."""

    def register(counterpart: C) -> C:
        BOUNDED.update(dict.fromkeys([c if isinstance(c, str) else _name(c) for c in classes], counterpart))
        return counterpart

    return register


def bound_gradients(model: M, radius: float | str = 1.0) -> M:
    """Make every layer of a model that has a bounded counterpart bound its gradients, in place.

    Args:
        model: any module; subclasses that change what their layer computes are left as they are.
        radius: the radius of every layer; set ``layer.radius`` afterwards for different ones. ``"auto"``: the private
            optimizer adapts each layer's radius at every step, by what the step releases anyway
            (:mod:`dplip.training.radii`).

    Returns:
        The model itself, with the same modules, parameters, constraints and keys of its ``state_dict``.
    """
    automatic = isinstance(radius, str)
    if automatic and radius != "auto":
        raise ConfigurationError(f"radius={radius!r}: give a number, or 'auto'.")
    first = FIRST if isinstance(radius, str) else checked_radius(radius)
    layer: Any
    for layer in list(model.modules()):
        kind = counterpart(layer)
        if kind is not None:
            layer.__class__ = kind
            layer.radius = first
            layer.slack = new_slack(layer.weight.device) if automatic and hasattr(kind, "slack") else None
            getattr(layer, "check_settings", lambda: None)()
    return model


def counterpart(layer: nn.Module) -> Any:
    """The bounded class of a layer; None where there is none, or a subclass changes what the layer computes."""
    cls = type(layer)
    for base in cls.__mro__:
        if _name(base) in BOUNDED:
            changed = [k for k in vars(layer) if inspect.isfunction(getattr(cls, k, None))]
            return None if changed else BOUNDED[_name(base)]
        if isinstance(layer, tuple(BOUNDED.values())) or not set(vars(base)) <= HARMLESS:
            return None
    return None


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
