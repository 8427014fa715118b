"""The uses of a model's parameters, read off the autograd graph of its output: who sends each its gradient.

Where enforcing nodes alone (:mod:`dplip.nn.bounded.enforcing`) send a parameter its gradient, one example's part in it
is at most the sum of their radii, whatever else the model computes.

Proof: the gradient that arrives at a parameter is the sum over the edges into it. The part of an edge that comes from
an enforcing node is, for each example, at most the node's radius. Between a node and the parameter lie at most
selections (views, slices, transpositions): each copies entries of a gradient to places of their own, so it keeps the
norm, and what comes by several edges adds up. What comes to disjoint parts of a tensor is orthogonal, so its squares
add up: three slices of a packed projection, each used once, send it at most sqrt(3) radii.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from dplip.errors import ConfigurationError, UnboundedOperationError
from dplip.nn.bounded.enforcing import JointRadius, is_enforcing
from dplip.rules import Summation
from dplip.sensitivities.selections import SELECTIONS, Part, apart, part_of


@dataclass(frozen=True)
class Use:
    """The uses of one parameter: a bound of one example's gradient, and how the gradients of a batch are summed."""

    bound: float
    summation: Summation

    def __add__(self, other: Use) -> Use:
        return Use(self.bound + other.bound, self.summation + other.summation)

    def beside(self, other: Use) -> Use:
        """Both, where no entry of the parameter has a gradient from both."""
        return Use(math.hypot(self.bound, other.bound), self.summation + other.summation)

    def __or__(self, other: Use) -> Use:
        """What holds for either of two passes."""
        more = max(self.summation.uses, other.summation.uses)
        both = self.summation + other.summation
        return Use(max(self.bound, other.bound), Summation(both.terms, both.blocked, both.exact, more))


class Arrival(NamedTuple):
    """What an edge brings: to which output of a node and which part of it, and what bounds it (None: nothing)."""

    output: int
    part: Part | None
    use: Use | None


def uses_of(outputs: Iterable[Tensor], names: Mapping[int, str]) -> dict[str, Use]:
    """Per parameter, its uses in the graph of a model's outputs.

    Args:
        outputs: the outputs of one forward pass.
        names: ``id`` of each trained parameter -> its name.

    Raises:
        UnboundedOperationError: a parameter gets a gradient from a node that bounds none, or a node of the graph has a
            backward pass of unknown code.
    """
    found = _found(outputs, names)
    return {name: _enforced(use, name, senders) for name, (use, senders) in found.items()}


def unbounded(outputs: Iterable[Tensor], names: Mapping[int, str]) -> list[str]:
    """The parameters that get a gradient from a node that bounds none."""
    return [name for name, (use, _) in _found(outputs, names).items() if use is None]


def _found(outputs: Iterable[Tensor], names: Mapping[int, str]) -> dict[str, tuple[Use | None, list[str]]]:
    """Per parameter, its uses, and the names of the nodes that send it a gradient."""
    roots = list(dict.fromkeys(t.grad_fn for t in outputs if t.grad_fn is not None))
    order, senders = _graph(roots)
    received: dict[Any, list[Arrival]] = {root: [Arrival(0, None, None)] for root in roots}
    found: dict[str, tuple[Use | None, list[str]]] = {}
    for node in order:
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            if id(leaf) in names:
                found[names[id(leaf)]] = _sum(received[node]), senders[node]
            continue
        enforcing = is_enforcing(node)
        _require_known(node)
        given = type(node)._forward_cls.given if enforcing else 0
        selecting = not enforcing and type(node).__name__ in SELECTIONS
        passed: list[tuple[Part | None, Use | None]] = _selected(node, received[node]) if selecting else [(None, None)]
        for position, (following, output) in enumerate(node.next_functions):
            if following is None:
                continue
            sent = passed
            if enforcing and position >= given:
                sent = [(None, Use(float(node.radius), Summation(node.terms, blocked=True)))]
            received.setdefault(following, []).extend(Arrival(output, *each) for each in sent)
    return found


def _selected(node: Any, received: list[Arrival]) -> list[tuple[Part | None, Use | None]]:
    """What a selection passes on, for each of its outputs: to which part of the tensor that it selects from."""
    outputs = {arrival.output for arrival in received}
    return [(part_of(node, n), _sum([arrival for arrival in received if arrival.output == n])) for n in outputs]


def _sum(received: list[Arrival]) -> Use | None:
    """A bound of the sum of what arrives at a tensor: by sums where it may overlap, by squares where it does not."""
    known = [(part, use) for _, part, use in received if use is not None]
    if len(known) < len(received):
        return None
    return reduce(Use.beside, (reduce(add, group) for group in apart(known)))


def joint_radii_of(outputs: Iterable[Tensor]) -> frozenset[JointRadius | None]:
    """The joint radii in the graph of a model's outputs; None among them: a node has a radius of its own."""
    order, _ = _graph(list(dict.fromkeys(t.grad_fn for t in outputs if t.grad_fn is not None)))
    radii = set()
    for node in filter(is_enforcing, order):
        if any(following for following, _ in node.next_functions[type(node)._forward_cls.given :]):
            radii.add(node.radius if isinstance(node.radius, JointRadius) else None)
    return frozenset(radii)


def bound_of_all(radii: frozenset[JointRadius | None]) -> float | None:
    """The bound of one example's gradient of all parameters together, where they have a joint radius.

    Raises:
        ConfigurationError: they have several, or some have one and others do not.
    """
    if not radii - {None}:
        return None
    if len(radii) > 1:
        kinds = ", ".join(sorted("radii of their own" if r is None else f"{r:g}" for r in radii))
        raise ConfigurationError(
            f"radius: the model's layers and parameters have {kinds}, and a joint radius is one for all that is "
            "trained. Call bound_gradients(model, radius) once on the whole model, with one JointRadius."
        )
    (radius,) = radii
    return None if radius is None else float(radius)


def behind(tensors: Iterable[Tensor], names: Mapping[int, str]) -> list[str]:
    """The parameters that tensors were computed of."""
    order, _ = _graph(list(dict.fromkeys(t.grad_fn for t in tensors if t.grad_fn is not None)))
    leaves = [id(getattr(node, "variable", None)) for node in order]
    return [names[key] for key in leaves if key in names]


def _graph(roots: list[Any]) -> tuple[list[Any], dict[Any, list[str]]]:
    """The nodes behind some roots, each after all that send it a gradient; and the names of the senders of each."""
    waiting: dict[Any, int] = dict.fromkeys(roots, 0)
    senders: dict[Any, list[str]] = {}
    left = list(roots)
    while left:
        node = left.pop()
        for following, _ in node.next_functions:
            if following is not None:
                if following not in waiting:
                    waiting[following] = 0
                    left.append(following)
                waiting[following] += 1
                senders.setdefault(following, []).append(type(node).__name__)
    order = [node for node in roots if not waiting[node]]
    for node in order:  # grows while it is read
        for following, _ in node.next_functions:
            if following is not None:
                waiting[following] -= 1
                if not waiting[following]:
                    order.append(following)
    return order, senders


def _enforced(use: Use | None, name: str, senders: list[str]) -> Use:
    if use is None:
        raise UnboundedOperationError(
            f"{name}: {', '.join(sorted(set(senders)))} sends this trained parameter a gradient that no layer bounds. "
            "Call dplip.nn.bound_gradients(model) and model.train() before the optimizer is made private; a layer that "
            "it does not know needs a parameter that is used by linear maps, sums and products alone, or "
            "requires_grad_(False); a layer that is applied to a value that depends on no example needs one row for "
            "each: value.expand(len(x), -1)."
        )
    return use


def _require_known(node: Any) -> None:
    """Refuse a node whose backward pass is Python code of unknown origin, which may mix examples."""
    if isinstance(node, BackwardCFunction):
        function = type(node)._forward_cls  # type: ignore[attr-defined]
        if function.__module__.partition(".")[0] != "dplip":
            raise UnboundedOperationError(
                f"{function.__module__}.{function.__qualname__}: an autograd function whose backward pass may mix the "
                "examples of a batch. Compute with torch's own operations; for activation checkpointing use "
                "torch.utils.checkpoint(..., use_reentrant=False), and no backward hooks."
            )
