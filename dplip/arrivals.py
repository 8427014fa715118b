"""What reaches the weights in a backward pass: the gradients of the model's own graph, all of them and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dplip.fingerprint import Same
from dplip.trace import Observer

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Arrivals:
    """Follows each gradient from the graph of the model's output to ``.grad``.

    A hook on the nodes of that graph sees what they send to a weight; a tensor hook of the weight what arrives there,
    and before any hook on what accumulates it; the end of the pass what has become of it. All three have to agree.

    Args:
        model: whose weights are watched; those who watched them before are dismissed.
        report: told what is wrong, as a sentence.
    """

    def __init__(self, model: nn.Module, report: Callable[[str], None]) -> None:
        self._model, self._report = model, report
        for p in model.parameters():
            hooks = p._backward_hooks or {}
            for key in [key for key, hook in hooks.items() if isinstance(hook, _Arrival)]:
                del hooks[key]
        self.reset()

    def reset(self) -> None:
        """Forget the gradients of this batch; what lies in ``.grad`` now is public, or nothing."""
        self._sent: dict[int, Tensor] = {}
        self._due: dict[int, Tensor] = {}
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._arrived: set[int] = set()
        self._left = {id(p): Same.state(p.grad) for p in self._model.parameters() if p.grad is not None}

    def follow(self, output: Tensor) -> None:
        """Watch what the graph of an output of the model sends to the weights, and what arrives there."""
        for p in self._model.parameters():
            if p.requires_grad and not any(self._is_own(hook) for hook in (p._backward_hooks or {}).values()):
                p.register_hook(_Arrival(self, p))
        for node, index, p in _feeders(output):
            node.register_hook(partial(self._send, index, p))

    def finish(self) -> None:
        """Compare what arrived with what the backward pass left in ``.grad``."""
        own = {id(p): p.grad for p in self._model.parameters() if p.requires_grad and p.grad is not None}
        if own.keys() - self._arrived - self._left.keys():
            self._report(_ALTERED)
        for key, due in self._due.items():
            grad = own.get(key)
            if grad is None or grad.shape != due.shape or grad.dtype != due.dtype or grad.layout != due.layout:
                self._report(_ALTERED)
            else:
                self._pairs.append((grad, due))
        pairs, self._pairs, self._due = self._pairs, [], {}
        by_device: dict[torch.device, list[Tensor]] = {}
        for a, b in pairs:
            by_device.setdefault(a.device, []).append(_differ(a, b))
        if any(bool(torch.stack(found).any()) for found in by_device.values()):  # one answer for all of a device
            self._report(_ALTERED)

    def _is_own(self, hook: Any) -> bool:
        return isinstance(hook, _Arrival) and hook.arrivals is self

    def _send(self, index: int, p: nn.Parameter, inputs: tuple[Tensor | None, ...], _: Any) -> None:
        gradient = inputs[index]
        if gradient is not None:
            before = self._sent.get(id(p))
            self._sent[id(p)] = gradient if before is None else before + gradient  # in the order of the engine

    @torch.no_grad()
    def arrive(self, p: nn.Parameter, gradient: Tensor) -> None:
        """A gradient is about to be added to ``p.grad``."""
        sent = self._sent.pop(id(p), None)
        if sent is None or sent.shape != gradient.shape or sent.dtype != gradient.dtype:
            self._report(_BESIDE)
        elif sent is not gradient:
            self._pairs.append((sent, gradient.clone()))
        if p.grad is not None and id(p) not in self._arrived and not self._untouched(p):
            self._report(_ALTERED)
        self._arrived.add(id(p))
        due = torch.empty_like(p)  # a copy: whoever comes after may change the gradient itself
        self._due[id(p)] = due.copy_(gradient) if p.grad is None else torch.add(p.grad, gradient, out=due)

    def _untouched(self, p: nn.Parameter) -> bool:
        grad = p.grad
        return grad is None or self._left.get(id(p)) == Same.state(grad) or not bool(grad.any())


class _Arrival(Observer):
    """The tensor hook of one weight."""

    def __init__(self, arrivals: Arrivals, parameter: nn.Parameter) -> None:
        self.arrivals, self._parameter = arrivals, parameter

    def __call__(self, gradient: Tensor) -> None:
        if not Observer.idle:
            self.arrivals.arrive(self._parameter, gradient)


def _feeders(output: Tensor) -> Iterator[tuple[Any, int, nn.Parameter]]:
    """The nodes of a graph that send a gradient straight to a leaf: each with the place where, and the leaf."""
    nodes = [output.grad_fn]
    seen = set(nodes)
    while nodes:
        node: Any = nodes.pop()
        for index, (following, _) in enumerate(node.next_functions):
            leaf = getattr(following, "variable", None)
            if leaf is not None:
                yield node, index, leaf
            elif following is not None and following not in seen:
                seen.add(following)
                nodes.append(following)


def _differ(a: Tensor, b: Tensor) -> Tensor:
    """Whether any bit of two tensors of one type differs; NaN equals itself."""
    bits = _BITS[a.element_size()]
    return (a.detach().view(bits) != b.detach().view(bits)).any()


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
