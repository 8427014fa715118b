"""The conversion of a model's layers into bounded ones, in place."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from dplip.errors import ConfigurationError
from dplip.nn.bounded.enforcing import JointRadius, Radius, checked_radius
from dplip.nn.bounded.joint import joint_radius
from dplip.nn.bounded.parameter import BoundedParameter, bounded
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


def bound_gradients(model: M, radius: Radius | str = 1.0) -> M:
    """Make every layer of a model that has a bounded counterpart bound its gradients, in place.

    Trained parameters that no such layer holds become bounded ones
    (:class:`~dplip.nn.bounded.parameter.BoundedParameter`). Where nothing is trained, nothing is changed: call it again
    after unfreezing.

    Args:
        model: any module; subclasses that change what their layer computes keep their class.
        radius: of every layer and bare parameter; set ``layer.radius`` and ``parameter.radius`` for different ones.
            ``"auto"``: the private optimizer adapts the radius of each linear or convolutional layer at every step, by
            what the step releases anyway (:mod:`dplip.training.radii`). A :class:`JointRadius`: of all gradients
            together; the same one for all layers and parameters of the model.

    Returns:
        The model itself, with the same modules, parameters, constraints and keys of its ``state_dict``.

    Raises:
        ConfigurationError: a layer has settings that no bound covers, or a radius of its own already beside a joint
            one; nothing has been changed.
    """
    automatic = isinstance(radius, str)
    if automatic and radius != "auto":
        raise ConfigurationError(f"radius={radius!r}: give a number, or 'auto'.")
    first = FIRST if isinstance(radius, str) else checked_radius(radius)
    if isinstance(first, JointRadius) and bounds_gradients(model) and joint_radius(model) is not first:
        raise ConfigurationError(
            f"radius={first:g}: layers of the model have other radii already, which a further call does not change. "
            "Call bound_gradients once, or again with the same JointRadius; or set .radius of each layer and parameter."
        )
    found = {}
    for path, layer in model.named_modules():
        kind = counterpart(layer)
        if kind is not None and any(p.requires_grad for p in layer.parameters()):
            found[layer] = kind
            try:
                getattr(kind, "check_settings", lambda layer: None)(layer)
            except ConfigurationError as error:
                raise ConfigurationError(f"{path or 'the model'}: {error}") from None
        if any(isinstance(p, UninitializedParameter) for p in layer._parameters.values()):
            raise ConfigurationError(
                f"{path or 'the model'}: it has no weights yet. Run the model once, on a public batch."
            )
    for layer, kind in found.items():
        layer.__class__ = kind
        layer.radius = first
        layer.slack = new_slack(next(layer.parameters()).device) if automatic and hasattr(kind, "slack") else None
    converted = tuple(kind for kind in BOUNDED.values() if not getattr(kind, "used_elsewhere", False))
    for layer in model.modules():
        for p in () if isinstance(layer, converted) else layer._parameters.values():
            if p is not None and p.requires_grad and not isinstance(p, BoundedParameter):
                bounded(p, first)
    return model


def bounds_gradients(model: nn.Module) -> bool:
    """Whether some layer or parameter of a model bounds its gradients, so that the model may be an enforced one."""
    layers = any(hasattr(module, "radius") and type(module) in set(BOUNDED.values()) for module in model.modules())
    return layers or any(isinstance(p, BoundedParameter) for p in model.parameters())


def counterpart(layer: nn.Module) -> Any:
    """The bounded class of a layer; None where there is none, or a subclass changes what the layer computes.

    None also where a weight is computed of others in the layer (by ``torch.nn.utils.weight_norm``).
    """
    cls = type(layer)
    if any(isinstance(value, Tensor) and value.requires_grad for value in vars(layer).values()):
        return None
    for base in cls.__mro__:
        if _name(base) in BOUNDED:
            changed = [k for k in vars(layer) if inspect.isfunction(getattr(cls, k, None))]
            return None if changed else BOUNDED[_name(base)]
        if isinstance(layer, tuple(BOUNDED.values())) or not set(vars(base)) <= HARMLESS:
            return None
    return None


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
