"""The conversion of a model's layers into bounded ones, in place."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from dplip.errors import ConfigurationError
from dplip.nn.bounded.enforcing import checked_radius
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


def bound_gradients(model: M, radius: float = 1.0) -> M:
    """Make every layer of a model that has a bounded counterpart bound its gradients, in place.

    Args:
        model: any module; subclasses that change what their layer computes are left as they are, and so are layers in
            which nothing is trained (call it again after unfreezing some).
        radius: the radius of every layer; set ``layer.radius`` afterwards for different ones.

    Returns:
        The model itself, with the same modules, parameters, constraints and keys of its ``state_dict``.

    Raises:
        ConfigurationError: a layer has settings that no bound covers; nothing has been changed.
    """
    checked_radius(radius)
    found = {}
    for path, layer in model.named_modules():
        kind = counterpart(layer)
        if kind is not None and any(p.requires_grad for p in layer.parameters()):
            found[layer] = kind
            try:
                getattr(kind, "check_settings", lambda layer: None)(layer)
            except ConfigurationError as error:
                raise ConfigurationError(f"{path or 'the model'}: {error}") from None
    for layer, kind in found.items():
        layer.__class__ = kind
        layer.radius = float(radius)
    return model


def bounds_gradients(model: nn.Module) -> bool:
    """Whether some layer of a model bounds its gradients, so that the model may be an enforced one."""
    return any(hasattr(module, "radius") and type(module) in set(BOUNDED.values()) for module in model.modules())


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
