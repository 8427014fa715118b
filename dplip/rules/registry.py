"""The registry of rules, which take norms forward and back through each function that a model may call."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TypeVar, cast

from torch import Tensor, nn

from dplip.errors import UnboundedOperationError
from dplip.norms import Norms, OperatorNorms

Parameters = Mapping[str | Tensor, Norms]
"""Cotangent norms of parameters, by a parameter's name in the module or by its tensor."""

Pullback = Callable[[Any], tuple[Any, Parameters]]
"""The cotangent norms of the output -> (the cotangent norms of each input, those of the parameters)."""

Rule = Callable[..., tuple[Any, Pullback]]

R = TypeVar("R", bound=Callable[..., Any])
Registered = TypeVar("Registered", bound=Callable[..., Any])

HARMLESS = {
    *("__init__", "__module__", "__qualname__", "__doc__", "__annotations__", "__constants__", "__repr__"),
    *("extra_repr", "reset_parameters", "__parameters__", "__orig_bases__", "__annotate__", "__annotate_func__"),
    *("__annotations_cache__", "__static_attributes__", "__firstlineno__"),
}
"""Attributes that a subclass may define without changing what its inherited ``forward`` computes."""


class Registry(Generic[R]):
    """Rules keyed by the code that runs: a function, a tensor method, or the ``forward`` of a module class."""

    def __init__(self) -> None:
        self.rules: dict[Any, R] = {}
        self.classes: set[type] = set()  # module classes with a rule of their own, whose attributes the rule knows

    def add(self, *functions: Any) -> Callable[[Registered], Registered]:
        """A decorator that registers a rule for functions, tensor methods or module classes."""

        def register(rule: Registered) -> Registered:
            for target in functions:
                cls: Any = target
                if inspect.isclass(target):
                    self.classes.add(target)
                self.rules[cls.forward if inspect.isclass(target) else target] = cast(R, rule)
            return rule

        return register

    def of(self, function: Any) -> R | None:
        """The rule of a function, a tensor method or a ``forward``, if there is one."""
        return self.rules.get(function)

    def of_module(self, module: nn.Module) -> R | None:
        """The rule of a module, by its ``forward``; None where a subclass changes what ``forward`` computes."""
        cls = type(module)
        found = self.of(cls.forward)
        if found is None:
            return None
        owner = max(i for i, base in enumerate(cls.__mro__) if vars(base).get("forward") is cls.forward)
        for base in cls.__mro__[:owner]:
            if base in self.classes:
                break
            if not set(vars(base)) <= HARMLESS | {"forward"}:
                return None
        shadowed = [k for k in vars(module) if inspect.isfunction(getattr(cls, k, None))]
        return None if shadowed else found


RULES: Registry[Rule] = Registry()

signature = functools.cache(inspect.signature)

ENFORCED: set[Rule] = set()
"""Rules of layers that bound each example's gradient of their own parameters, in the parameters' type and for every
input and cotangent: see :mod:`dplip.sensitivities.enforced`."""


@dataclass(frozen=True)
class Summation:
    """How the gradient of a parameter is summed over examples and over the positions of an example.

    Attributes:
        terms: the most terms that one example adds to an entry.
        blocked: the sum is in blocks (:mod:`dplip.nn.sums`); False: its order is left to the machine.
        exact: the sum is in float64.
        uses: the number of uses of the parameter, each of which has a sum.
    """

    terms: int = 1
    blocked: bool = False
    exact: bool = False
    uses: int = 1

    def __add__(self, other: Summation) -> Summation:
        """The summation of two uses of a parameter: the relative error of each is at most the larger one."""
        both = self.blocked and other.blocked, self.exact and other.exact
        return Summation(max(self.terms, other.terms), *both, self.uses + other.uses)


SUMMATIONS: dict[Rule, Callable[[tuple[int, ...], tuple[int, ...]], Summation]] = {}
"""Rule -> (parameter shape, shape of one example's output) -> :class:`Summation`. A rule without an entry counts one
term for each entry of the output."""

SUMMED: set[Any] = set()
"""The ``forward`` of the layers whose backward pass sums over a batch in blocks: :func:`dplip.nn.bounded.summed`."""


@dataclass(frozen=True)
class Call:
    """One call of a function in a model, which the function's rule is given beside the arguments.

    Attributes:
        function: the function that is called.
        shape: the shape of one example's output (a tuple of shapes where the function returns several values).
        path: the place of the call in the model, for messages.
    """

    function: Any
    shape: Any
    path: str

    def refuse(self, reason: str, remedy: str) -> NoReturn:
        refuse(self.path, _name(self.function), reason, remedy)


def refuse(path: str, operation: str, reason: str, remedy: str) -> NoReturn:
    """Raise :class:`UnboundedOperationError` with the module path, the operation, the reason and the remedy."""
    raise UnboundedOperationError(f"{path or 'the model'}: {operation} {reason} {remedy}")


def refuse_module(module: nn.Module, reason: str, remedy: str) -> NoReturn:
    """Raise :class:`UnboundedOperationError` from a module's rule; the walk adds the module's path."""
    raise UnboundedOperationError(f"{type(module).__name__}({module.extra_repr()}) {reason} {remedy}")


def rule(*functions: Any) -> Callable[[Registered], Registered]:
    """Register a rule for functions, tensor methods, or module classes (their ``forward``).

    The rule is shaped like a vjp. It is called as ``rule(module, *norms)`` or ``rule(call, *arguments)``, with
    :class:`Norms` in place of each value that depends on an example, and returns ``(output, pullback)``, where
    ``pullback(cotangent)`` returns ``(input cotangents, {parameter name: cotangent})``.

    Guarantee: none of its own. A rule claims that for all inputs and cotangents within the given norms, the output and
    the input and parameter cotangents are within the returned ones.
    """
    return RULES.add(*functions)


def registered() -> dict[Any, Rule]:
    """A copy of the registry, for tests that run over all rules."""
    return dict(RULES.rules)


def through(jacobian: OperatorNorms, x: Norms, shape: tuple[int, ...], at_zero: Norms | None = None) -> Any:
    """The output and pullback of a map f whose Jacobians are all bounded by ``jacobian``.

    Proof: ``f(x) = f(0) + (integral of the Jacobian along the segment) x``; the cotangent goes through the adjoint.
    """
    output = jacobian(x, shape)
    if at_zero is not None:
        output = output + at_zero
    return output, lambda v: ((jacobian.T(v, x.shape),), {})


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", None) or getattr(function, "__name__", None) or str(function)
