"""The life of a private step: what the gradient monitor checks until noise is added.

1. Before the forward pass the monitor lends the model secret random numbers (``_before_forward``).
2. After it (``_after_forward``) the monitor notes the output, the state of model and loss, and what the model makes of
   public rows. It refuses other arguments than one batch of the declared shape, lower precision, and a part of the
   model that is called by itself (``_after_part``).
3. The loss asks whether it was given such an output (``is_model_output``). In the backward pass it reports values whose
   weight is not 1 (``on_reweighting``), and the gradient that it sends, scaled into its bounds (``on_gradients``); the
   monitor refuses more losses, or more examples at once, than the slack for rounding covers.
4. The gradient that enters the model's output has to be the one that the loss sent (``_at_output``).
5. :class:`dplip.training.arrivals.Arrivals` follows it to the weights. It refuses a gradient that a hook changed, and
   one that the graph did not send; ``_after_backward`` compares ``.grad`` with the gradients that arrived.
6. The optimizer moves the gradients of a part of a batch elsewhere (``settle``); at the step of the whole batch
   :func:`dplip.training.step_checks.check_gradients` refuses a reported problem, another number of examples than were
   handed out, and any change since the backward pass (``check``).
7. Bounds are computed for the model of the public rows, the step is charged, noise is added, and all is forgotten
   (``reset``).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from dplip.errors import ConfigurationError
from dplip.losses import Loss
from dplip.nn.bounded import summed
from dplip.nn.bounded.slack import leaves
from dplip.norms import Norms
from dplip.propagation.checks import Observer
from dplip.propagation.guards import Same, guards_of, sample
from dplip.rules import SUMMED
from dplip.runtime.precision import require_full_precision
from dplip.runtime.secret import Secret, lent
from dplip.runtime.uncompiled import uncompiled
from dplip.training.arrivals import Arrivals
from dplip.training.passes import CHANGED, Passes, Seen, separately
from dplip.training.replicas import problem_of_wrapper

PASSES = 4
"""The most losses of parts of a batch that may be added in the parameters' type (:func:`dplip.nn.sums.added`)."""


class GradientMonitor(Observer):
    """Watches a model's outputs, the gradients that its loss sends back, and ``.grad`` until the step.

    Args:
        model, loss: the watched model and loss; an earlier monitor of the same model is removed.
        passes: what tells whether a forward pass is one of the model that is bounded.
        masks: source of the model's draws while gradients are recorded (see :func:`dplip.runtime.secret.lent`).

    Attributes:
        draws: whether the model may draw random numbers.
        examples: number of examples whose gradient the loss sent back since the last :meth:`reset`.
        problem: the first problem seen since then that the bounds do not cover, as a sentence; None: nothing.
        most: the most examples whose gradients may be summed at once in the parameters' type.
        seen: what the bounds of the gradients follow from.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        passes: Passes,
        masks: Secret | None = None,
    ) -> None:
        self._model, self._loss, self._passes = model, loss, passes
        self._outputs: list[tuple[weakref.ref[Tensor], int]] = []  # with their versions
        self._sent: list[weakref.ref[Tensor]] = []
        self._summed: dict[nn.Module, int] = {}  # the layers that sum in blocks, with the number of the hook
        self._inside = self._rounded = False
        self.most = math.inf
        self._masks, self._lent, self.draws = Secret() if masks is None else masks, ExitStack(), True
        self._arrivals = Arrivals(model, self._report)
        self.reset()
        for module in model.modules():
            for table in (module._forward_hooks, module._forward_pre_hooks):
                for key, hook in list(table.items()):
                    if isinstance(hook, _Hook):
                        del table[key]
            if module is not model and module._parameters:
                module.register_forward_hook(_Hook(self._after_part))
            if type(module).forward in SUMMED:
                self._summed[module] = module.register_forward_hook(_Hook(summed)).id
        model.register_forward_pre_hook(_Hook(self._before_forward), with_kwargs=True)
        model.register_forward_hook(_Hook(self._after_forward), with_kwargs=True, always_call=True)
        loss.monitor = self

    def reset(self) -> None:
        """Forget the gradients seen so far."""
        self.examples = self._losses = self._together = 0
        self.problem: str | None = None
        self.crowded: str | None = None  # as a sentence: more were summed at once than ``most``
        self._unfit: str | None = None  # why an output was not taken for the model's
        self._state: Any = None  # of the model and the loss at the forward pass
        self.seen = Seen()
        self._norms: tuple[Any, Norms] | None = None  # the shape of the loss's gradient, and its enforced bounds
        self._gradients: Any = None  # as the last backward pass left them
        self._settled = self._of_passes()
        self._arrivals.reset()
        self._sent = [ref for ref in self._sent if ref() is not None]
        self._outputs = [(ref, version) for ref, version in self._outputs if ref() is not None]

    def leave(self) -> None:
        """End a pass that was interrupted, such as by the keyboard, which no hook is told of."""
        self._lent.close()
        self._inside = False

    def check(self) -> None:
        """Compare the present weights, modes, attributes and gradients with those of the gradient's own pass."""
        if self._state != self._present_state():
            self._report(CHANGED)
        if self._norms is not None and self._norms[1] != self._loss.gradient_norms(self._norms[0]):
            self._report(CHANGED)
        if self._gradients != self._present_gradients():
            self._report(_EDITED)
        layers = [m for m in self._model.modules() if type(m).forward in SUMMED]
        if not all(self._summed.get(m) in m._forward_hooks for m in layers):
            self._report(_REPLACED)

    def settle(self) -> None:
        """Check that the gradients of a physical batch are as its backward pass left them, before they are moved."""
        if self._gradients is not None and self._gradients != self._present_gradients():
            self._report(_EDITED)
        self._gradients, self._losses, self._together = None, 0, 0
        self._settled = self._of_passes()
        self._arrivals.settle()

    def discard(self) -> None:
        """Forget the passes since :meth:`settle`, which were of a blank row, and whose gradients are cleared."""
        self.examples, self.problem, self._state, self.seen, self._norms = self._settled
        self._gradients = None
        self.settle()
        self._gradients = self._present_gradients()

    def _of_passes(self) -> tuple[Any, ...]:
        """What is known of the passes so far; a blank row's state would hide that those before were of another."""
        return self.examples, self.problem, self._state, self.seen, self._norms

    # What the loss reports (dplip.losses.base.Monitor).

    def is_model_output(self, outputs: Tensor) -> bool:
        return any(ref() is outputs and version == outputs._version for ref, version in self._outputs)

    def on_gradients(self, gradients: list[Tensor], of_model: bool, shape: Any) -> None:
        if self._gradients is not None and self._gradients != self._present_gradients():
            self._report(_EDITED)
        if self._state is not None and self._state[1] != guards_of(self._loss):
            self._report(CHANGED)
        norms = shape, self._loss.gradient_norms(shape)
        if self._norms not in (None, norms):
            self._report(CHANGED)
        self._norms = norms
        if self._rounds(gradients[0]):
            self._report(_ROUNDED)
        self._check_precision()
        self.examples += len(gradients[0])
        self._losses += 1
        self._together += len(gradients[0])
        if self._together > self.most:
            self.crowded = _TOGETHER
        if self._losses > PASSES:
            self._report(_SEVERAL)
        self._sent += [weakref.ref(gradient) for gradient in gradients]
        if not of_model:
            self._report(self._unfit or _FOREIGN)
        torch.autograd.Variable._execution_engine.queue_callback(self._after_backward)

    def on_reweighting(self) -> None:
        self._report(_WEIGHED)

    # What the hooks report.

    @uncompiled  # runs as Python, at a break of the graph
    def _before_forward(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.leave()
        self._inside, self._rounded = True, False
        # An adversary may know the global state, and so the masks. A mapped pass (torch.func) is followed by no step.
        if torch.is_grad_enabled() and torch._C._functorch.peek_interpreter_stack() is None:
            self._lent.enter_context(lent(self._masks, dropout=self.draws))
            self._lent.enter_context(self._passes.watch((args, kwargs)))

    @uncompiled  # runs as Python, at a break of the graph
    def _after_forward(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        self._inside = False
        self._lent.close()
        outputs = self._passes.outputs(output)
        if not outputs:
            return output
        unfit = _ROUNDED if self._rounded or self._rounds(outputs[0]) else self._passes.problem((args, kwargs), outputs)
        output = separately(self._model, output)
        unfit = problem_of_wrapper() or unfit
        if unfit:
            self._unfit = unfit
            return output
        self._check_precision()
        outputs = self._passes.outputs(output)
        state, found = self._present_state(), self._passes.seen(outputs)
        ways = self._arrivals.follow(outputs)
        for one, way in zip(outputs, ways, strict=True):
            self._note(one, way, state, found)
        return output

    def _note(self, output: Tensor, way: Any, state: Any, found: Seen) -> None:
        """Remember an output of the model, and look at the gradient that enters it."""
        seen = weakref.ref(output)
        self._outputs.append((seen, output._version))
        output.register_hook(lambda gradient: self._at_output(gradient, seen(), way, state, found))

    def _after_part(self, module: nn.Module, args: Any, output: Any) -> None:
        self._rounded = self._rounded or self._rounds(output)
        again = self._passes.recomputed or torch._C._current_graph_task_id() != -1  # of the backward pass that runs
        if not (self._inside or again) and isinstance(output, Tensor) and output.requires_grad:
            self._report(
                f"a part of the model, {type(module).__name__}, was called by itself, and a gradient through it would "
                "not be bounded. Call the whole model, or do it within torch.no_grad()."
            )

    def _at_output(self, gradient: Tensor, output: Tensor | None, way: Any, state: Any, found: Seen) -> None:
        """Require that the gradient that enters the model's output is one that the loss sent."""
        self._arrivals.begin(way, gradient)
        sent = [ref() for ref in self._sent]
        if not any(s is not None and torch.equal(s, gradient) for s in sent):
            self._arrivals.suspect(self._unfit or _FOREIGN)
            return
        if self._state not in (None, state) or state[1] != guards_of(self._loss):
            self._report(CHANGED)
        if not self.seen.agrees(found):
            self._report(CHANGED)
        self._state, self.seen = state, self.seen | found
        self.seen.shape = None if self._norms is None else self._norms[0]
        if output is not None and len(output._backward_hooks or ()) > 1:  # another one may change the gradient after
            self._report(_HOOKED)

    def _after_backward(self) -> None:
        self._arrivals.finish()
        self._gradients = self._present_gradients()

    def _present_state(self) -> tuple[Any, ...]:
        """The state of model and loss that the bounds of a gradient depend on."""
        return self._passes.state(), guards_of(self._loss)

    def _present_gradients(self) -> tuple[Any, ...]:
        gradients = [p.grad for p in leaves(self._model) if p.grad is not None]
        return [Same.state(g) for g in gradients], sample(gradients)

    def _rounds(self, value: Any) -> bool:
        """Whether autocast may round products more than the bounds allow, on the device of a value."""
        return (
            not self._passes.half_precision
            and isinstance(value, Tensor)
            and torch.is_autocast_enabled(value.device.type)
        )

    def _check_precision(self) -> None:
        """Check the precision while the passes run: a setting may be restored before the step."""
        try:
            require_full_precision(self._model)
        except ConfigurationError as wrong:
            self._report(str(wrong))

    def _report(self, problem: str) -> None:
        self.problem = self.problem or problem


class _Hook(Observer):
    """A hook of a monitor; in a copy of the model it does nothing."""

    def __init__(self, function: Callable[..., Any] = lambda *_: None) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Hook, ())


_FOREIGN = (
    "the loss was given something else than the model's own output, or something else than the loss sent a gradient "
    "into it, so the bounds do not hold. Call loss(model(x), y).backward(), with the output as it is and nothing added "
    "to the loss."
)
_WEIGHED = (
    "the values of the loss were weighed, divided or combined otherwise than by a sum, and a factor may depend on the "
    "other examples. Call loss(model(x), y).backward(): the optimizer divides by the public expected batch size. For a "
    "smaller step lower the learning rate."
)
_HOOKED = (
    "a hook is registered on the model's output, and may change the gradient that enters the model, so the bounds do "
    "not hold. Remove it."
)
_ROUNDED = (
    "torch.autocast was on, and propagated bounds do not hold in half precision. Train without it; or make every layer "
    "bound its own gradient, dplip.nn.bound_gradients(model), and say so: half_precision=True (of DPLipTrainer: "
    "autocast=torch.bfloat16)."
)
_REPLACED = (
    "a layer was put in, or its hooks were taken away, since the model was made private, so its gradients are not "
    "summed as the bounds say. Make the model private again."
)
_SEVERAL = (
    f"more than {PASSES} losses went into the gradient of one batch, whose sum rounds more than is covered. Take one "
    "backward pass and one step() for each batch that the loader hands out; for less memory give the loader "
    "max_physical_batch_size."
)
_TOGETHER = (
    "the gradients of more examples were summed at once than a part of a batch has, and their sum rounds more than is "
    "covered. Take one backward pass and one step() for each batch that the loader hands out, as it is, and leave its "
    "max_physical_batch_size as it was."
)
_EDITED = (
    "a gradient has changed since the backward pass (gradient clipping, or an assignment to .grad), so the bounds are "
    "not those of what would be released. Leave .grad as backward() fills it."
)
