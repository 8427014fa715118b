"""A sample of a rule: one use of it, to hold the laws against; and short ways to write one down."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn


class Calls(nn.Module):
    """A function of the input and of parameters, as a module: a functional call is walked as it stands in a model."""

    def __init__(self, function: Callable[..., Tensor], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function, self.names = function, tuple(shapes)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *[getattr(self, name) for name in self.names])


@dataclass(frozen=True)
class Sample:
    """One use of a rule.

    Attributes:
        build: makes the module.
        shape: of one example's input.
        tight: quantities whose l2 bound, for an input and a cotangent bounded in l2, is attained up to half a percent
            for some weights, so that the law fails for a bound that is one percent smaller.
        radius: of the balls of inputs.
        train: whether the module is in training mode.
        linear: whether the backward pass is linear in the cotangent, as a derivative is.
        rounding: relative error of the module itself in float64.
        starts: points that an attack starts from; fewer for further names of one rule.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    tight: tuple[str, ...] = ()
    radius: float = 3.0
    train: bool = False
    linear: bool = True
    rounding: float = 1e-9
    starts: int = 8

    def __str__(self) -> str:
        return self.name

    def module(self) -> nn.Module:
        torch.manual_seed(0)
        return self.build().double().train(self.train)


IN, BOTH = ("input",), ("output", "input")
VECTOR, TOKENS, MAP = (6,), (3, 4), (2, 4, 4)
T = torch.Tensor


def _name(function: object) -> str:
    name = getattr(function, "__name__", "")
    owner = "Tensor" if getattr(torch.Tensor, name, None) is function else getattr(function, "__module__", None)
    return f"{owner}.{name}"


def called(
    functions: Sequence[Callable[..., Tensor]],
    *arguments: object,
    shape: tuple[int, ...] = VECTOR,
    tight: tuple[str, ...] = (),
    rounding: float = 1e-9,
    then: Callable[..., Tensor] = lambda y: y,
    **named: object,
) -> list[Sample]:
    """One sample for each of the names that one operation has: torch, functional, and Tensor method.

    The first is attacked in earnest; for the others it is enough to see that the name leads to the same rule.
    """

    def build(function: Callable[..., Tensor]) -> Callable[[], nn.Module]:
        name = getattr(function, "__name__", "")
        if getattr(torch.Tensor, name, None) is function:  # a method is recorded as such only on the value itself
            return lambda: Calls(lambda x: then(getattr(x, name)(*arguments, **named)))
        return lambda: Calls(lambda x: then(function(x, *arguments, **named)))

    first, *others = (Sample(_name(f), build(f), shape, tight, rounding=rounding) for f in functions)
    return [first, *(replace(sample, tight=(), starts=2) for sample in others)]


def calls(
    name: str,
    function: Callable[..., Tensor],
    tight: tuple[str, ...] = BOTH,
    shape: tuple[int, ...] = TOKENS,
    **shapes: tuple[int, ...],
) -> Sample:
    return Sample(name, lambda: Calls(function, **shapes), shape, tight)


def module(m: nn.Module, shape: tuple[int, ...] = VECTOR, tight: tuple[str, ...] = BOTH) -> Sample:
    return Sample(f"{m}", lambda: m, shape, tight)
