"""From a batch of a loader to a call of the model and the targets, and from the model's output to its loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from dplip.errors import ConfigurationError
from dplip.runtime.example import Call

TARGETS = "labels", "label", "targets", "target", "y"
"""The keys under which a dictionary is searched for its targets, in this order."""

Unpack = Callable[[Any], tuple[tuple[Any, ...], Mapping[str, Any], Any]]
"""A function from a batch to the positional arguments of the model, the keyword arguments, and the targets."""

Select = str | int | Callable[[Any], Any] | None
"""What of a model's output goes into the loss: a name, a position, or a function that selects; None: the scores."""


class Calls:
    """How a model is called with a batch, and what of its output the loss is given.

    Args:
        model: the model, whose signature tells which entries of a dictionary it takes.
        unpack: makes the arguments and the targets of a batch. None: a pair is (input, targets); of a longer tuple the
            last entry is the targets; an input that is a tuple or a dictionary is several arguments; of a dictionary
            the targets are under one of :data:`TARGETS`, and what the model takes of the rest are its keyword
            arguments.
        output: see :data:`Select`. None: the output itself, or its ``logits``.
    """

    def __init__(self, model: nn.Module, unpack: Unpack | None = None, output: Select = None) -> None:
        self._model, self._unpack, self._output = model, unpack, output

    @property
    def plain(self) -> bool:
        """Whether a pair is an input and a target."""
        return self._unpack is None

    def require_plain(self, what: str) -> None:
        """Refuse settings under which a batch is no pair of an input and a target."""
        if self._unpack is not None or self._output is not None:
            raise ConfigurationError(f"{what}: it works on pairs (input, target). Leave out unpack= and output=.")

    def of(self, batch: Any) -> tuple[Call, Any]:
        """The arguments of the model for a batch, and the targets.

        Raises:
            ConfigurationError: the batch is of no known layout.
        """
        if self._unpack is not None:
            args, kwargs, targets = self._unpack(batch)
            return (tuple(args), dict(kwargs)), targets
        if isinstance(batch, Mapping):
            return self._of_mapping(batch)
        if isinstance(batch, tuple | list) and len(batch) >= 2:
            *inputs, targets = batch
            return self._arguments(inputs[0] if len(inputs) == 1 else tuple(inputs)), targets
        raise ConfigurationError(
            f"a batch is a {type(batch).__name__}, and which of it are inputs and targets is not known. Let the data "
            "set give (input, target) or a dictionary with 'labels', or pass unpack=lambda batch: (args, kwargs, "
            "targets)."
        )

    def run(self, model: nn.Module, call: Call, device: Any) -> Any:
        """What the loss is given of the model's output, the call's tensors being brought to a device."""
        args, kwargs = moved(call, device)
        return self.select(model(*args, **kwargs))

    def select(self, output: Any) -> Any:
        """What the loss is given of the model's output."""
        chosen = self._output
        if callable(chosen):
            return self._selected(chosen(output), output)
        try:
            if isinstance(chosen, str):
                return output[chosen] if isinstance(output, Mapping) else getattr(output, chosen)
            if chosen is not None:
                return output[chosen]
        except (KeyError, IndexError, AttributeError, TypeError):
            raise ConfigurationError(
                f"output={chosen!r}: the model's {type(output).__name__} has no such entry. Give one of its own."
            ) from None
        if isinstance(output, Tensor):
            return output
        logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
        return logits if isinstance(logits, Tensor) else output  # a loss of several outputs picks its own

    def _selected(self, chosen: Any, output: Any) -> Any:
        """What ``output`` chose, if it is among the tensors that the model returned, to which bounds refer."""
        given = {id(t) for t in tree_leaves(output)}
        for t in tree_leaves(chosen):
            if isinstance(t, Tensor) and id(t) not in given:
                raise ConfigurationError(
                    f"output={self._output!r}: it computes a tensor of shape {tuple(t.shape)}, and bounds are those of "
                    "the tensors that the model returns. Let it select one, as in lambda out: out['scores'], and "
                    "compute in the model's forward."
                )
        return chosen

    def _of_mapping(self, batch: Mapping[str, Any]) -> tuple[Call, Any]:
        key = next((key for key in TARGETS if key in batch), None)
        if key is None:
            raise ConfigurationError(
                f"a batch has the keys {list(batch)}, and none of {list(TARGETS)}. Rename the targets to 'labels', or "
                "pass unpack=lambda batch: (args, kwargs, targets)."
            )
        accepted = self._accepted()
        inputs = {k: v for k, v in batch.items() if k != key and (accepted is None or k in accepted)}
        if not inputs and len(batch) == 2:
            return self._arguments(next(v for k, v in batch.items() if k != key)), batch[key]
        if not inputs:
            raise ConfigurationError(
                f"a batch has the keys {list(batch)}, and the model's forward takes {sorted(accepted or ())}. Rename "
                "them in the data set, or pass unpack=lambda batch: (args, kwargs, targets)."
            )
        return ((), {k: v for k, v in inputs.items() if accepted is not None or isinstance(v, Tensor)}), batch[key]

    def _arguments(self, inputs: Any) -> Call:
        if isinstance(inputs, Mapping):
            return (), dict(inputs)
        return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}

    def _accepted(self) -> set[str] | None:
        """The names that the model's forward takes; None: any."""
        parameters = inspect.signature(self._model.forward).parameters.values()
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            return None
        return {p.name for p in parameters}


def moved(value: Any, device: Any) -> Any:
    """The value with all its tensors on a device."""
    return tree_map_only(Tensor, lambda t: t.to(device), value)
