"""What reaches the weights in a backward pass: the gradients of the model's own graph, all of them and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dplip.fingerprint import Same

_WATCHED = "dplip"
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Arrivals:
    """Follows each gradient from the graph of the model's output to ``.grad``.

    A hook on the nodes of that graph sees what they send to a weight; one before the node that accumulates sees what
    arrives there; the end of the pass what has become of it. All three have to agree, whoever else has hooks there.

    Args:
        model: whose weights are watched.
        report: told what is wrong, as a sentence.
    """

    def __init__(self, model: nn.Module, report: Callable[[str], None]) -> None:
        self._model, self._report = model, report
        self._left: dict[int, Same] = {}
        self.reset()

    def reset(self) -> None:
        """Forget the gradients of this batch; what lies in ``.grad`` now is public, or nothing."""
        self.settle()
        self._left = {id(p): Same.state(p.grad) for p in self._model.parameters() if p.grad is not None}

    def settle(self) -> None:
        """Forget those of a physical batch, which are moved elsewhere: nothing is in ``.grad`` then."""
        self._sent: dict[int, Tensor] = {}
        self._due: dict[int, Tensor] = {}
        self._found: list[Tensor] = []  # whether something differs
        self._arrived: set[int] = set()
        self._left = {}

    def follow(self, output: Tensor) -> None:
        """Watch what the graph of an output of the model sends to the weights, and what arrives there."""
        for node, index, accumulator in _feeders(output):
            p = accumulator.variable
            node.register_hook(partial(self._send, index, p))
            if accumulator.metadata.get(_WATCHED) is not self:  # the passes that are under way share it
                accumulator.metadata[_WATCHED] = self
                accumulator.register_prehook(partial(self._arrive, p))

    def finish(self) -> None:
        """Compare what arrived with what the backward pass left in ``.grad``."""
        own = {id(p): p.grad for p in self._model.parameters() if p.requires_grad and p.grad is not None}
        if any(Same.state(own[key]) != self._left.get(key) for key in own.keys() - self._arrived):
            self._report(_ALTERED)
        for key, due in self._due.items():
            grad = own.get(key)
            if grad is None or grad.shape != due.shape or grad.dtype != due.dtype or grad.layout != due.layout:
                self._report(_ALTERED)
            else:
                self._found.append(_differ(grad, due))
        if self._found and bool(torch.stack(self._found).any()):  # one answer for all of them
            self._report(_ALTERED)
        self._found, self._due = [], {}

    @torch.no_grad()
    def _send(self, index: int, p: nn.Parameter, inputs: tuple[Tensor | None, ...], _: Any) -> None:
        gradient = inputs[index]
        if gradient is not None:
            before = self._sent.get(id(p))
            # A copy, since whoever comes after may change the tensor itself; added up in the order of the engine.
            self._sent[id(p)] = gradient.clone() if before is None else before.add_(gradient)

    @torch.no_grad()
    def _arrive(self, p: nn.Parameter, gradients: tuple[Tensor | None, ...]) -> None:
        """A gradient is about to be added to ``p.grad``."""
        sent, gradient = self._sent.pop(id(p), None), gradients[0]
        if gradient is None:
            return
        if sent is None or sent.shape != gradient.shape or sent.dtype != gradient.dtype:
            self._report(_BESIDE)
            return
        self._found.append(_differ(sent, gradient))
        if p.grad is not None and id(p) not in self._arrived and not self._untouched(p):
            self._report(_ALTERED)
        self._arrived.add(id(p))
        self._due[id(p)] = sent if p.grad is None else sent.add_(p.grad)

    def _untouched(self, p: nn.Parameter) -> bool:
        grad = p.grad
        return grad is None or self._left.get(id(p)) == Same.state(grad) or not bool(grad.any())


def _feeders(output: Tensor) -> Iterator[tuple[Any, int, Any]]:
    """The nodes of a graph that send a gradient straight to a leaf: each with the place where, and what accumulates."""
    nodes = [output.grad_fn]
    seen = set(nodes)
    while nodes:
        node: Any = nodes.pop()
        for index, (following, _) in enumerate(node.next_functions):
            if hasattr(following, "variable"):
                yield node, index, following
            elif following is not None and following not in seen:
                seen.add(following)
                nodes.append(following)


def _differ(a: Tensor, b: Tensor) -> Tensor:
    """Whether any bit of two tensors of one type differs; NaN equals itself."""
    bits = _BITS[a.element_size()]
    a, b = a.detach().view(bits), b.detach().view(bits)
    if a.device.type == "cpu":
        return torch.tensor(not torch.equal(a, b))  # twice as fast; elsewhere it would wait for the device
    return (a != b).any()


_BESIDE = (
    "a gradient reached a weight otherwise than through the model's output (a penalty on the weights beside the loss, "
    "or a part of the model called directly), and it may depend on the batch, so the bounds do not hold. Backward the "
    "loss alone; weight_decay= of the optimizer acts after the noise."
)
_ALTERED = (
    "what lies in .grad is not what the backward pass brought there (a hook on a gradient or its accumulator, as "
    "libraries of distributed training register, or an assignment before the pass), so the bounds are not those of "
    "what would be released. Remove it, and leave .grad as backward() fills it."
)
