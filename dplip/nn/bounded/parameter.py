"""Parameters that no layer of ours holds: each use of one by the examples is bounded where it meets them.

A bare parameter (positions, a class token, the scale of someone's own normalisation) is made a ``BoundedParameter`` in
place. What is computed of parameters alone is a :class:`Derived` value, which remembers how. Where one meets a value
that depends on examples, :mod:`dplip.nn.bounded.meetings` puts an enforcing node between them. What is not known there
is computed as torch computes it: a reader of the autograd graph then finds a use that bounds nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dplip.nn.bounded.enforcing import Radius, checked_radius
from dplip.nn.bounded.use import Function

Handler = Callable[..., Any]

HANDLERS: dict[Any, Handler] = {}
"""A function of torch -> what is done where a bounded parameter is among its arguments: ``handler(function, args,
kwargs)``, which returns ``NotImplemented`` to leave the call as it is."""


def handles(*functions: Any) -> Callable[[Handler], Handler]:
    """A decorator that registers what is done in calls of these functions."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(functions, handler))
        return handler

    return register


def dispatched(cls: Any, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    """Every call of torch in which a parameter of ours is an argument; without gradients they are plain tensors."""
    if not all(issubclass(t, Tensor) for t in types):
        return NotImplemented  # a tracer's turn
    kwargs = kwargs or {}
    handler = HANDLERS.get(function) if torch.is_grad_enabled() else None
    with torch._C.DisableTorchFunctionSubclass():
        result = NotImplemented if handler is None else handler(function, args, kwargs)
        return function(*args, **kwargs) if result is NotImplemented else result


class BoundedParameter(nn.Parameter):
    """A parameter that bounds each example's gradient at each of its uses, by ``radius`` in l2.

    :func:`bound_gradients` makes one of a parameter, by its class alone: it is the same object, with the same place in
    a module, an optimizer and a ``state_dict``.

    Attributes:
        radius: the largest l2 norm of one example's gradient, for each use.

    Guarantee: where it meets a value of examples in arithmetic, ``expand``, a matrix product, a lookup or a
    normalisation of torch, the bound holds for every value and cotangent. Any other use is left as it is, and a model
    with one is refused by what reads its autograd graph.
    """

    radius: Radius

    def __deepcopy__(self, memo: dict[int, Any]) -> BoundedParameter:
        if id(self) not in memo:
            memo[id(self)] = bounded(
                nn.Parameter(self.data.clone(), self.requires_grad), copy.deepcopy(self.radius, memo)
            )
        copied: BoundedParameter = memo[id(self)]
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuilt, (self.data, self.requires_grad, self.radius)


class Derived(Tensor):
    """What was computed of bounded parameters alone.

    Attributes:
        parameters: bounded parameters, or parts of them (views, of which a reader of the graph knows).
        function: makes the value of them, in their type; None: the value is the one parameter.
        radius: of the parameters.
        ids, padding: of a lookup; the function is the lookup.
        version: the count of writes when it was made; what is written later makes it an ordinary tensor.
    """

    parameters: tuple[Tensor, ...]
    function: Function | None
    radius: Radius
    ids: Tensor | None
    padding: int | None
    version: int


# Set after the class, since torch's metaclass of parameters inspects the attribute.
BoundedParameter.__torch_function__ = Derived.__torch_function__ = classmethod(dispatched)  # type: ignore[assignment]


def bounded(p: nn.Parameter, radius: Radius) -> BoundedParameter:
    """Make a parameter bound its gradients, in place."""
    p.__class__ = BoundedParameter
    p.radius = checked_radius(radius)  # type: ignore[attr-defined]
    assert isinstance(p, BoundedParameter)
    return p


def _rebuilt(data: Tensor, requires_grad: bool, radius: Radius) -> BoundedParameter:
    return bounded(nn.Parameter(data, requires_grad), radius)


def derived(
    value: Tensor,
    parameters: tuple[Tensor, ...],
    function: Function | None,
    radius: Radius,
    ids: Tensor | None = None,
    padding: int | None = None,
) -> Tensor:
    """A value that remembers how it was made of parameters, in place, so that what is known of the tensor stays."""
    if value.requires_grad and type(value) is Tensor:
        value.__class__ = Derived
        mine: Any = value
        mine.parameters, mine.function, mine.radius, mine.ids, mine.padding = parameters, function, radius, ids, padding
        mine.version = value._version
    return value


def own(value: Any) -> bool:
    """Whether a value is a trained parameter of ours, or computed of such alone."""
    if isinstance(value, Derived):
        return value._version == value.version
    return isinstance(value, BoundedParameter) and value.requires_grad


def made_of(value: Any) -> tuple[tuple[Tensor, ...], Function | None, Radius]:
    """The parameters that a value was made of, how, and their radius."""
    if isinstance(value, Derived):
        return value.parameters or (value,), value.function, value.radius
    return (value,), None, value.radius
