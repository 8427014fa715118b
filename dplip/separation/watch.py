"""A watch over a forward pass: which tensors hold examples, and where, by the operators that really run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dplip.errors import ConfigurationError
from dplip.separation.call import Refused, Seen, refuse
from dplip.separation.exits import Exits
from dplip.separation.marks import Marks, code_of
from dplip.separation.operators import Decision, Operator, decide
from dplip.separation.place import mixed
from dplip.separation.rows import UNKNOWN, Public, Rows
from dplip.separation.signature import Signature

_local = threading.local()
_operators: dict[int, Operator] = {}
_decisions: dict[Any, Decision] = {}
_KEPT = 100_000
"""Decisions that are remembered; more are forgotten together."""


def active() -> Watch | None:
    """The watch of this thread, if one is active."""
    return getattr(_local, "watch", None)


class Watch:
    """Follow the examples through the operators of a forward pass, and refuse what mixes them.

    Guarantee: each entry of a tensor with :class:`Rows` depends on the inputs of one example alone, the one that Rows
    names, and in the same way for each; other tensors depend on no example. Assumes that all that computes with
    examples are operators of torch in this thread; the known ways out of torch are refused. One example mixes with
    none, so a pass over one is only followed: it must fit the template of passes over more.

    Args:
        inputs: tensors whose axis 0 counts the examples.
        examples: their number.
        model: for the names of its modules in messages, and of its weights in the signature.

    Raises:
        ConfigurationError: if an input does not count the examples, or another watch is active.
        MixedExamplesError: inside the block, by the operator that mixes examples or is not known.
    """

    def __init__(self, inputs: Sequence[Tensor], examples: int, model: nn.Module | None = None) -> None:
        for t in inputs:
            if not t.ndim or len(t) != examples:
                raise ConfigurationError(
                    f"inputs: a tensor of shape {tuple(t.shape)} does not have {examples} examples along axis 0. Give "
                    "the tensors that hold one row for each example."
                )
        self.examples = examples
        self.signature = Signature()
        self._inputs = list(inputs)
        self._model = model
        self._marks = Marks(examples, model)
        self._modes: list[Any] = []

    def rows(self, t: Tensor) -> Rows | None:
        """Where the examples are in a tensor; None if it depends on none."""
        with torch._C.DisableTorchFunction():
            try:
                label = self._marks.of(t).label
            except Refused as refused:
                self.refuse("this", refused)
        return label if isinstance(label, Rows) else None

    def equal(self, t: Tensor, axis: int) -> bool:
        """Whether a constant is known to have equal entries along a dimension."""
        with torch._C.DisableTorchFunction():
            label = self._marks.of(t).label
        return isinstance(label, Public) and axis in label.equal

    def own(self, t: Tensor) -> None:
        """Count slice i of a tensor along axis 0 as example i's own, such as a copy of a weight made for each."""
        with torch._C.DisableTorchFunction():
            label = self._marks.of(t).label
            if isinstance(label, Public) and label.counted:
                self.signature.counted.add(len(self.signature.entries) - 1)
            self._marks.mark(t, self._marks.first(t), self._marks.of(t).origin, t._version)

    def made(self, t: Tensor) -> bool:
        """Whether a tensor is a constant that an operator of this pass has made."""
        with torch._C.DisableTorchFunction():
            return self._marks.made(t)

    def refuse(self, what: str, refused: Refused) -> NoReturn:
        """Raise the error that says where in the model examples mix, by what, and what to do."""
        raise mixed(self._model, what, refused) from None

    def __enter__(self) -> Watch:
        if active() is not None:
            raise ConfigurationError("A watch is active in this thread already. Leave it before another begins.")
        if torch.is_inference_mode_enabled():
            raise ConfigurationError("inference_mode=True: its tensors do not count writes. Use torch.no_grad().")
        torch.clear_autocast_cache()  # weights that another pass has cast
        for i, t in enumerate(self._inputs):
            self._marks.enter(t, ("input", i))
        _local.watch = self
        self._modes = [Exits(self), _Operators(self)]
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        while self._modes:  # they hold the watch
            self._modes.pop().__exit__(kind, value, traceback)
        _local.watch = None

    def run(
        self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], instead: Callable[..., Any] | None = None
    ) -> Any:
        """Run an operator, or what stands for it, and mark its results."""
        call = instead or function
        operator = _operators.get(id(function))
        if operator is None:
            operator = _operators[id(function)] = Operator(function)
        try:
            if torch.is_inference_mode_enabled():
                refuse("runs in inference mode, whose tensors do not count writes.", "Use torch.no_grad().")
            origins: list[Any] = []
            keys: list[Any] = [operator, self.examples]
            self._key(args, keys, origins)
            for name, value in kwargs.items():
                keys.append(name)
                self._key((value,), keys, origins)
            key = tuple(keys)
            decision = _decisions.get(key)
            if decision is None or operator.written or operator.parts:
                return self._carefully(operator, call, args, kwargs, key, origins)
            result = call(*args, **kwargs)
            self._note(operator, decision, result, origins, args)
            return result
        except Refused as refused:
            self.refuse(operator.name, refused)

    def _key(self, values: Sequence[Any], keys: list[Any], origins: list[Any]) -> None:
        """What decides of a call: its numbers, and of its tensors the code of their marks."""
        for value in values:
            if isinstance(value, Tensor):
                mark = self._marks.of(value)
                origins.append((mark.origin, value.requires_grad, torch.is_grad_enabled()))
                keys.append(mark.code)
            elif isinstance(value, (list, tuple)):
                inner: list[Any] = []
                self._key(value, inner, origins)
                keys.append(tuple(inner))
            else:
                keys += type(value), value  # 2 is not 2.0

    def _carefully(
        self, operator: Operator, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any], key: Any, origins: list[Any]
    ) -> Any:
        """Run an operator that is new, or writes to its arguments: it is asked before it writes."""
        decision = _decisions.get(key)
        seen: dict[str, Any] = {}
        if decision is None:
            seen = operator.bound(_map(args, self._seen), {k: _map(v, self._seen) for k, v in kwargs.items()})
            if operator.in_place:
                decision = self._decide(operator, seen, [tuple(args[0].shape)], key)
            elif operator.written and not operator.reshapes:
                decide(operator, seen, [], self.examples)
        if operator.in_place and decision is not None and self._marks.of(args[0]).constant:
            label = decision.labels[0]
            if isinstance(label, Rows):
                self._marks.claim(args[0], label)
            else:
                self._marks.wrote(args[0], label)
        result = call(*args, **kwargs)
        if decision is None:
            decision = self._decide(operator, seen, [tuple(t.shape) for t in _tensors(result)], key)
        self._note(operator, decision, result, origins, args)
        if operator.parts:
            self._marks.parts(_tensors(result), args[0])
        if operator.written and not operator.in_place and not operator.reshapes:
            bound = operator.bound(args, kwargs)
            written = next((label for label in decision.labels if isinstance(label, Public)), UNKNOWN)
            for t in _tensors([bound[name] for name in operator.written]):
                self._marks.wrote(t, written)
                self._marks.mark(t, written, self._marks.of(t).origin, t._version + 1)
        return result

    def _note(
        self, operator: Operator, decision: Decision, result: Any, origins: list[Any], args: tuple[Any, ...]
    ) -> None:
        """Mark the results and keep the entry."""
        entries = self.signature.entries
        at = len(entries)
        if decision.counted:
            self.signature.counted.add(at)
        if not operator.same or operator.name == "detach":  # which the way back is told by
            entries.append((decision.entry, tuple(origins)))
        # torch counts a write, and ties a view to what it is of, after the operator is done; detach_ is no write
        later = 1 if operator.written and not operator.same else 0
        version = args[0]._version if operator.views else None
        for i, t in enumerate((result,) if isinstance(result, Tensor) else _tensors(result)):
            origin = origins[0][0] if operator.same else (at, i)
            label, codes = decision.labels[i], decision.codes[i]
            dtype = t.dtype
            code = codes.get(dtype)
            if code is None:
                code = codes[dtype] = code_of(label, t)
            self._marks.put(t, label, code, origin, t._version + later if version is None else version)
            if version is None and not later and isinstance(label, Rows):
                self._marks.hold(t, label)

    def _decide(self, operator: Operator, seen: dict[str, Any], shapes: list[tuple[int, ...]], key: Any) -> Decision:
        decision, lasting = decide(operator, seen, shapes, self.examples)
        if lasting:
            if len(_decisions) > _KEPT:
                _decisions.clear()
            _decisions[key] = decision
        return decision

    def _seen(self, t: Tensor) -> Seen:
        return Seen(self._marks.of(t).label, tuple(t.shape), t.dtype, t, t.stride())


def _map(value: Any, function: Callable[[Tensor], Any]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    return type(value)(_map(v, function) for v in value) if type(value) in (list, tuple) else value


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for v in value for t in _tensors(v)] if isinstance(value, (list, tuple)) else []


class _Operators(TorchDispatchMode):
    """Hands every operator to the watch."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._watch.run(func, args, kwargs or {})
