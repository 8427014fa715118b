"""A check that ``.grad`` holds exactly the gradients that the graph of the model's output sent to the weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from dplip.nn.bounded import JointRadius
from dplip.nn.bounded.joint import joint_radius
from dplip.nn.bounded.slack import leaves
from dplip.propagation.guards import Same

_WATCHED = "dplip"
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Arrivals:
    """Follows each gradient from the model's output to ``.grad``.

    A hook on each node of the output's graph compares the gradients that the node receives with those that were sent
    to it. A hook before each accumulating node does so for the weight, and the end of the pass for ``.grad``. A
    gradient that the graph did not send is reported, whoever added or changed it. A pass that reaches no weight, such
    as the search for an adversarial example, releases nothing, so it may be of any loss.

    Args:
        model: the model whose weights are watched.
        report: called with each problem, as a sentence.
    """

    def __init__(self, model: nn.Module, report: Callable[[str], None]) -> None:
        self._model, self._report, self._numbers = model, report, count()
        self._left: dict[int, Same] = {}
        self._joint: JointRadius | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the gradients of this batch: ``.grad`` is public or empty now."""
        self.settle()
        self._left = {id(p): Same.state(p.grad) for p in leaves(self._model) if p.grad is not None}

    def settle(self) -> None:
        """Forget the gradients of a physical batch, which the optimizer moves out of ``.grad``."""
        self._sent: dict[Any, tuple[Tensor, int, bool]] = {}  # sent to each weight and node: sum, version, whether ours
        self._doubts: list[Tensor | bool] = []  # flags: a node received another gradient than was sent
        self._suspicion: str | None = None  # the first problem of the present pass
        self._touched = False  # whether the present pass has reached a weight
        self._due: dict[int, Tensor] = {}
        self._found: list[Tensor | bool] = []  # flags: a gradient differs from the expected one
        self._arrived: set[int] = set()
        self._left = {}

    def follow(self, outputs: list[Tensor]) -> list[Any]:
        """Watch the graph of a model's outputs; returns their keys for :meth:`begin`."""
        self._joint = joint_radius(self._model)
        numbers = dict(zip(_nodes(outputs), self._numbers, strict=False))  # a hook that held nodes would never be freed
        weights = {id(p) for p in leaves(self._model)}  # other leaves, such as inputs, are not released
        for node, number in numbers.items():
            ways = []
            for following, index in node.next_functions:
                leaf = getattr(following, "variable", None)
                ways.append((numbers.get(following), index) if leaf is None else id(leaf))
                if leaf is not None and id(leaf) in weights and following.metadata.get(_WATCHED) is not self:
                    following.metadata[_WATCHED] = self  # once: all passes share this node
                    following.register_prehook(partial(self._arrive, leaf))
            node.register_hook(partial(self._through, number, ways))
        return [(numbers[output.grad_fn], output.output_nr) for output in outputs]

    def begin(self, way: Any, gradient: Tensor) -> None:
        """Record the gradient that enters a watched output."""
        self._at_the_end()
        self._enter(way, gradient)

    def suspect(self, problem: str) -> None:
        """Report this problem if the present backward pass reaches a weight."""
        self._at_the_end()
        self._suspicion = self._suspicion or problem

    def finish(self) -> None:
        """Compare what arrived with what the backward pass left in ``.grad``."""
        own = {id(p): p.grad for p in leaves(self._model) if p.requires_grad and p.grad is not None}
        if any(Same.state(own[key]) != self._left.get(key) for key in own.keys() - self._arrived):
            self._report(_ALTERED)
        for key, due in self._due.items():
            grad = own.get(key)
            if grad is None or grad.shape != due.shape or grad.dtype != due.dtype or grad.layout != due.layout:
                self._report(_ALTERED)
            else:
                self._found.append(_differ(grad, due))
        if _any(self._found):
            self._report(_ALTERED)
        self._found, self._due = [], {}

    def _at_the_end(self) -> None:
        torch.autograd.Variable._execution_engine.queue_callback(self._end)

    def _end(self) -> None:
        """End a backward pass: report its doubts if it reached a weight."""
        if self._touched and _any(self._doubts):
            self._report(_BESIDE)
        self._sent.clear()
        self._doubts.clear()
        self._suspicion, self._touched = None, False

    def _enter(self, way: Any, gradient: Tensor) -> None:
        """Record the gradient that a watched graph sends to a weight or a node."""
        before = self._sent.get(way)
        if before is None:  # of a weight's a copy, since a later hook may change the tensor
            total, ours = (gradient.clone(), True) if isinstance(way, int) else (gradient, False)
        else:  # in the order of the engine
            total, ours = before[0].add_(gradient) if before[2] else before[0] + gradient, True
        self._sent[way] = total, total._version, ours

    @torch.no_grad()
    def _through(self, number: int, ways: list[Any], inputs: tuple[Tensor | None, ...], given: Any) -> None:
        """Compare the gradients that a node received with those sent to it, and record those that it sends on."""
        if self._joint is not None and self._joint.measured is not None:
            return  # the pass that measures a joint radius brings no gradient to a weight
        for index, gradient in enumerate(given):
            sent = self._sent.pop((number, index), None)
            if sent is None or gradient is None:
                if sent is not None or gradient is not None:
                    self.suspect(_BESIDE)
            elif sent[0].shape != gradient.shape or sent[0].dtype != gradient.dtype or sent[0]._version != sent[1]:
                self.suspect(_BESIDE)
            elif sent[0] is not gradient:
                self._doubts.append(_differ(sent[0], gradient))
        for way, gradient in zip(ways, inputs, strict=True):
            if gradient is not None:
                self._enter(way, gradient)

    @torch.no_grad()
    def _arrive(self, p: nn.Parameter, gradients: tuple[Tensor | None, ...]) -> None:
        """Compare the gradient that is about to be added to ``p.grad`` with the one that was sent."""
        sent, gradient = self._sent.pop(id(p), None), gradients[0]
        if gradient is None:
            return
        self._touched = True
        if self._suspicion is not None:
            self._report(self._suspicion)
        if sent is None or sent[0].shape != gradient.shape or sent[0].dtype != gradient.dtype:
            self._report(_BESIDE)
            return
        self._found.append(_differ(sent[0], gradient))
        if p.grad is not None and id(p) not in self._arrived and not self._untouched(p):
            self._report(_ALTERED)
        self._arrived.add(id(p))
        self._due[id(p)] = sent[0] if p.grad is None else sent[0].add_(p.grad)

    def _untouched(self, p: nn.Parameter) -> bool:
        grad = p.grad
        return grad is None or self._left.get(id(p)) == Same.state(grad) or not bool(grad.any())


def _nodes(outputs: list[Tensor]) -> list[Any]:
    """The nodes of the graph of some outputs, without those that accumulate gradients."""
    found: dict[Any, None] = dict.fromkeys(output.grad_fn for output in outputs)
    left: list[Any] = list(found)
    while left:
        for following, _ in left.pop().next_functions:
            if following is not None and not hasattr(following, "variable") and following not in found:
                found[following] = None
                left.append(following)
    return list(found)


def _any(flags: list[Tensor | bool]) -> bool:
    """Whether one of some flags is set, with one wait for the device."""
    there = [flag for flag in flags if isinstance(flag, Tensor)]
    return any(flag is True for flag in flags) or bool(there and torch.stack(there).any())


def _differ(a: Tensor, b: Tensor) -> Tensor | bool:
    """Whether any bit of two tensors of one type differs; NaN equals itself."""
    bits = _BITS[a.element_size()]
    a, b = a.detach().contiguous().view(bits), b.detach().contiguous().view(bits)
    if a.device.type == "cpu":
        return not torch.equal(a, b)  # twice as fast; elsewhere it would wait for the device
    return (a != b).any()


_BESIDE = (
    "a gradient reached a weight otherwise than through the model's output (a penalty on weights or hidden values "
    "beside the loss, a hook on a node of the graph, or a part of the model called directly), and it may depend on the "
    "batch, so the bounds do not hold. Backward the loss alone; weight_decay= of the optimizer acts after the noise."
)
_ALTERED = (
    "what lies in .grad is not what the backward pass brought there (a hook on a gradient or its accumulator, as "
    "libraries of distributed training register, or an assignment before the pass), so the bounds are not those of "
    "what would be released. Remove it, and leave .grad as backward() fills it."
)
