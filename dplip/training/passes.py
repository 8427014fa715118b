"""A forward pass as the gradient monitor sees it: whether its outputs are those of the model that is bounded."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from dplip.errors import DPLipError
from dplip.nn.bounded import JointRadius
from dplip.nn.bounded.joint import measured
from dplip.propagation.graph import Root
from dplip.propagation.guards import Same, guards_of, sample
from dplip.propagation.public_rows import PublicRows, agree
from dplip.runtime.example import Call
from dplip.runtime.values import with_tensors
from dplip.sensitivities.enforced_model import EnforcedModel, floats
from dplip.sensitivities.uses import Use
from dplip.separation import Watch

BACKWARD = 32
"""One pass in so many compares the gradients of the public rows too, which cost four times their values."""


CHANGED = (
    "the weights, the mode, an attribute of the model or the loss, or a global that they read has changed since its "
    "gradient was computed, so the bounds are not those of the gradient. Change them after step()."
)


@dataclass
class Seen:
    """What was seen of the passes of one batch, from which its bounds follow.

    Attributes:
        rows: a propagated model's outputs for the public rows at the forward pass; None: there were none.
        uses: an enforced model's uses of each parameter.
        radii: its joint radii, as :class:`dplip.sensitivities.enforced_model.EnforcedModel` has them.
        shape: the shape, or the shapes, of one example's outputs that the loss was given.
    """

    rows: list[Tensor] | None = None
    uses: dict[str, Use] = field(default_factory=dict)
    radii: frozenset[JointRadius | None] = frozenset()
    shape: Any = None

    def agrees(self, other: Seen) -> bool:
        """Whether both are of one model."""
        told = min(len(self.rows or ()), len(other.rows or ()))  # only some passes look at gradients too
        return not (self.rows and other.rows) or agree(self.rows[:told], other.rows[:told])

    def __or__(self, other: Seen) -> Seen:
        """What was seen of both."""
        uses = {name: use | self.uses.get(name, use) for name, use in other.uses.items()}
        return Seen(other.rows, {**self.uses, **uses}, self.radii | other.radii, other.shape)


class Passes(Protocol):
    """A judge of forward passes."""

    half_precision: bool
    """Whether the bounds hold under ``torch.autocast``."""

    recomputed: bool
    """Whether parts of the model may run again in the backward pass, as activation checkpointing has it."""

    def watch(self, call: Call) -> AbstractContextManager[Any]:
        """The context in which the pass runs."""

    def outputs(self, output: Any) -> list[Tensor]:
        """The tensors of the model's output that a loss may be given."""

    def problem(self, call: Call, outputs: list[Tensor]) -> str | None:
        """Why the bounds are not those of the pass, as a sentence; None: they are."""

    def seen(self, outputs: list[Tensor]) -> Seen:
        """What the bounds of the pass follow from."""

    def state(self) -> Any:
        """The state of the model that the bounds of a gradient depend on."""


class PropagatedPasses:
    """The passes of a model with a trace: one tensor in, one out, and public rows that show whether it has changed.

    Args:
        model, input_shape, half_precision: see :class:`dplip.training.gradient_monitor.GradientMonitor`.
    """

    def __init__(self, model: nn.Module, input_shape: tuple[int, ...], half_precision: bool) -> None:
        self._model, self._shape, self.half_precision = model, input_shape, half_precision
        self.recomputed = False
        self._public, self._count = PublicRows(Root(model), input_shape), 0

    def watch(self, call: Call) -> AbstractContextManager[Any]:
        return nullcontext()

    def outputs(self, output: Any) -> list[Tensor]:
        return [output] if isinstance(output, Tensor) and output.requires_grad else []

    def problem(self, call: Call, outputs: list[Tensor]) -> str | None:
        args, kwargs = call
        if len(args) != 1 or kwargs:
            return (
                f"the model was called with {len(args)} arguments and the keywords {sorted(kwargs)}, but its bounds "
                "are those of model(x), every other argument being as it is by default. Call model(x); what is to vary "
                "can be an attribute of the model."
            )
        shapes = [tuple(a.shape[1:]) for a in args if isinstance(a, Tensor)]
        if shapes != [self._shape]:
            return (
                f"the model was given examples of shape {shapes}, but its bounds are those of {self._shape}. Train on "
                "one tensor of examples of the declared input_shape."
            )
        return None

    def seen(self, outputs: list[Tensor]) -> Seen:
        rows = self._public.of_model(gradients=self._count % BACKWARD == 0)
        self._count += 1
        return Seen(rows=rows)

    def state(self) -> Any:
        tensors = [*self._model.parameters(), *self._model.buffers()]
        return guards_of(self._model), [Same.state(t) for t in tensors], sample(tensors)


class EnforcedPasses:
    """The passes of an enforced model, whose operators are watched, and whose graph is read.

    Args:
        model: the enforced model.
    """

    half_precision = recomputed = True

    def __init__(self, model: EnforcedModel) -> None:
        self._model = model
        self._watch: Watch | None = None
        self._uses: dict[str, Use] = {}

    def watch(self, call: Call) -> AbstractContextManager[Any]:
        self._watch = None
        if not self._model.model.training or self._model.example.problem(call):
            return nullcontext()  # its outputs will not do for a loss
        self._watch = self._model.watch(call)
        return self._watch

    def outputs(self, output: Any) -> list[Tensor]:
        return [t for t in floats(output) if t.requires_grad]

    def problem(self, call: Call, outputs: list[Tensor]) -> str | None:
        if not self._model.model.training:
            return "the model was in evaluation mode, in which its layers do not bound gradients. Call model.train()."
        if self._watch is None:
            return self._model.example.problem(call) or "the pass was not watched. Call the model itself: model(x)."
        try:
            self._uses = self._model.uses(outputs)
            return self._model.problem(call, self._watch, outputs, self._uses)
        except DPLipError as wrong:
            return str(wrong)

    def seen(self, outputs: list[Tensor]) -> Seen:
        return Seen(uses=self._uses, radii=self._model.joint(outputs))

    def state(self) -> Any:
        return None  # the bounds are read off the graph of the pass itself


def separately(model: nn.Module, output: Any) -> Any:
    """The output with a node of its own for each tensor, so that the gradient that a loss sends it is told apart.

    A joint radius has one node for all, which measures before the gradient goes on.
    """
    output = measured(model, output)
    if isinstance(output, Tensor):
        return output
    return with_tensors(lambda t: t.view_as(t) if t.requires_grad else t, output)
