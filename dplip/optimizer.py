"""The private step: bounds of this step's weights, one event, one noise draw, the user's optimizer, a projection."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dplip.accounting import GaussianEvent
from dplip.constraints import project
from dplip.errors import ConfigurationError
from dplip.losses import Loss
from dplip.noise import GaussianNoise, split
from dplip.operators import NormCache
from dplip.propagate import Walk
from dplip.sensitivity import Sensitivities, sensitivity_of
from dplip.trace import Observer, fingerprint

NEIGHBORING = {"add_remove": 1.0, "replace_one": 2.0}
"""How far two neighbouring sums lie apart, in units of one example's bound."""


class Batches(Protocol):
    """What hands out the examples of each step, such as :class:`dplip.sampling.PoissonLoader`."""

    @property
    def expected_batch_size(self) -> float: ...

    @property
    def sample_rate(self) -> float: ...

    @property
    def complete(self) -> bool: ...

    @property
    def number(self) -> int: ...

    @property
    def handed_out(self) -> int: ...

    @property
    def logical_batches(self) -> int: ...

    def take(self) -> int: ...


class _Witness(Observer):
    """Sees what the model puts out and what the loss took, so that a step can tell whose gradient it holds."""

    def __init__(self, input_shape: tuple[int, ...] = (), state: Callable[[], Any] = tuple) -> None:
        self.input_shape, self.state = input_shape, state
        self.outputs: list[weakref.ref[Tensor]] = []
        self.sent: list[weakref.ref[Tensor]] = []
        self.reset()

    def reset(self) -> None:
        self.examples = 0
        self.foreign = False
        self.problem: str | None = None
        self.seen: Any = None  # the state of the model and the loss at the forward pass
        self.changed = False
        self.sent = [ref for ref in self.sent if ref() is not None]
        self.outputs = [ref for ref in self.outputs if ref() is not None]

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.requires_grad:
            shapes = [tuple(a.shape[1:]) for a in args if isinstance(a, Tensor)]
            if torch.is_autocast_enabled(output.device.type):
                self.problem = "torch.autocast was on, and the bounds do not cover half precision. Train without it."
                return
            if shapes != [self.input_shape]:
                self.problem = (
                    f"the model was given examples of shape {shapes}, but its bounds are those of {self.input_shape}. "
                    "Train on one tensor of examples of the declared input_shape."
                )
                return
            now = self.state()
            self.changed = self.changed or (self.seen is not None and self.seen != now)
            self.seen = now
            self.outputs.append(weakref.ref(output))
            output.register_hook(self.arrived)

    def arrived(self, gradient: Tensor) -> None:
        """The gradient that reaches the model's output must be one that the loss sent, and nothing besides."""
        sent = [ref() for ref in self.sent]
        self.foreign = self.foreign or not any(s is not None and torch.equal(s, gradient) for s in sent)

    def made(self, outputs: Tensor) -> bool:
        return any(ref() is outputs for ref in self.outputs)

    def passed(self, gradient: Tensor, genuine: bool) -> None:
        self.examples += len(gradient)
        self.sent.append(weakref.ref(gradient))
        self.foreign = self.foreign or not genuine

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Witness, ())  # a copy of the model is watched by nobody


class DPLipOptimizer(Optimizer):
    """A torch optimizer whose every step is differentially private, without a gradient per example.

    ``step()`` takes the summed gradient of the batch in ``.grad``, adds Gaussian noise calibrated to the sensitivity
    of the present weights, divides by the public expected batch size, runs the wrapped optimizer and projects the
    constrained weights. While the loader has handed out only a part of a Poisson batch, it accumulates instead.

    Args:
        optimizer: any torch optimizer over exactly the trainable parameters of the model.
        model: a model that the algebra can walk.
        loss: the :class:`dplip.losses.Loss` whose backward pass fills the gradients.
        input_shape: shape of one example.
        noise_multiplier: std of the noise per unit of sensitivity (sigma).
        batches: the loader; owns the sampling rate and counts what it handed out.
        neighboring: ``"add_remove"``, or ``"replace_one"`` (twice the sensitivity).
        charge: called with the event of each step before its noise is drawn; raises to refuse the step.
        noise: where the noise comes from; by default seeded from the operating system.
        drift: relative looseness allowed to operator norms that are carried over steps.

    Raises:
        ConfigurationError: the optimizer lacks a trainable parameter or holds a foreign one.

    Guarantee: given that the loader samples as it says, one step is a Poisson-subsampled Gaussian mechanism of
    multiplier sigma under the named neighbouring relation; all else in it is post-processing.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        model: nn.Module,
        loss: Loss,
        input_shape: tuple[int, ...],
        noise_multiplier: float,
        batches: Batches,
        neighboring: str = "add_remove",
        charge: Callable[[GaussianEvent], None] | None = None,
        noise: GaussianNoise | None = None,
        drift: float = 0.01,
    ) -> None:
        if neighboring not in NEIGHBORING:
            raise ConfigurationError(f"neighboring={neighboring!r}: choose one of {list(NEIGHBORING)}.")
        self.event = GaussianEvent(noise_multiplier, batches.sample_rate)
        _check_parameters(optimizer, model)
        self.original, self.model, self.loss = optimizer, model, loss
        self.batches, self.neighboring = batches, neighboring
        self.noise = GaussianNoise() if noise is None else noise
        self._input_shape, self._charge = input_shape, charge
        self._cache = NormCache(drift)
        self._walk = Walk(model, input_shape)
        self.sensitivities()  # refuses what cannot be bounded before anything is trained
        self._witness = _Witness(self._walk.input_shape, self._state)
        self._accumulating: int | None = None  # the logical batch of which a part is in the gradients
        for p in model.parameters():
            p.grad = None  # whatever is there did not come through the loss
        for hook_id, hook in list(model._forward_hooks.items()):
            if isinstance(hook, _Witness):  # an earlier private optimizer's
                del model._forward_hooks[hook_id]
        model.register_forward_hook(self._witness)
        loss.witness = self._witness
        # Schedulers want an Optimizer: this one shares the wrapped optimizer's groups and state.
        self.param_groups, self.state, self.defaults = optimizer.param_groups, optimizer.state, optimizer.defaults

    @property
    def noise_multiplier(self) -> float:
        return self.event.noise_multiplier

    @property
    def expected_batch_size(self) -> float:
        """The public number that the noisy sum is divided by."""
        return self.batches.expected_batch_size

    def sensitivities(self) -> Sensitivities:
        """Per parameter, how far two neighbouring sums can lie apart, for the present weights and mode."""
        if not self._walk.current():
            self._walk = Walk(self.model, self._input_shape)
        with self._cache:
            bounds = sensitivity_of(self._walk, self.loss)
        # Rounding of a float32 sum over the batch, relative to its largest possible value.
        factor = NEIGHBORING[self.neighboring] * (1 + self.expected_batch_size * 2.0**-24)
        return Sensitivities({name: bound * factor for name, bound in bounds.items()})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one private step, or accumulate while the batch is incomplete.

        Raises:
            ConfigurationError: the gradients are not those of one backward pass of the declared loss over the examples
                handed out since the last step, or are not finite. Nothing is spent or changed.
            BudgetExceededError: the step would exceed the budget. Nothing is spent or changed.
        """
        if closure is not None:
            raise ConfigurationError("closure: a private step uses one gradient. Call backward() first, then step().")
        if not self.batches.complete:
            self._accumulating = self.batches.number
            return
        parameters = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self._check_gradients(list(parameters.values()))
        bounds = self.sensitivities()
        stds = split(bounds, {n: p.numel() for n, p in parameters.items()}, self.noise_multiplier)
        if self._charge is not None:
            self._charge(self.event)
        empty = self.batches.take() == 0
        self._witness.reset()
        self._accumulating = None
        for name, p in parameters.items():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            elif empty:
                p.grad.zero_()
            self.noise.add_(p.grad, stds[name])
            p.grad.div_(self.expected_batch_size)
        self.original.step()
        with self._cache:
            project(self.model)

    def _state(self) -> tuple[Any, ...]:
        """What the bounds of a gradient depend on, at the time of its forward pass."""
        versions = tuple(p._version for p in self.model.parameters())
        return fingerprint(self.model), fingerprint(self.loss), versions

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, unless a part of the present batch is in them."""
        if self._accumulating == self.batches.number:
            return
        self.original.zero_grad(set_to_none)
        self._witness.reset()

    def state_dict(self) -> dict[str, Any]:
        return self.original.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.original.load_state_dict(state_dict)
        self.param_groups, self.state = self.original.param_groups, self.original.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        raise ConfigurationError("add_param_group: build the optimizer over all trainable parameters of the model.")

    def __repr__(self) -> str:
        return f"DPLipOptimizer({self.original!r}, noise_multiplier={self.noise_multiplier})"

    def _check_gradients(self, parameters: list[Tensor]) -> None:
        handed, seen = self.batches.handed_out, self._witness.examples
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.batches.logical_batches != 1:
            raise ConfigurationError(
                f"step(): the loader handed out {self.batches.logical_batches} batches since the last step, and an "
                "example may be in several of them. Take one step for each batch."
            )
        if handed == 0:  # an empty batch: whatever is in .grad is dropped
            return
        if seen == 0:
            raise ConfigurationError(
                "step(): the gradients did not come through the declared loss. Call loss(model(x), y).backward() with "
                f"the {type(self.loss).__name__} that this optimizer was given."
            )
        if self._witness.foreign and self._witness.problem:
            raise ConfigurationError(f"step(): {self._witness.problem}")
        if self._witness.foreign:
            raise ConfigurationError(
                "step(): the loss was given something else than the model's own output, or something else than the "
                "loss sent a gradient into it, so the bounds do not hold. Call loss(model(x), y).backward(), with the "
                "output as it is and nothing added to the loss."
            )
        if self._witness.changed or self._witness.seen != self._state():
            raise ConfigurationError(
                "step(): the weights, the mode or an attribute of the model or the loss has changed since its gradient "
                "was computed, so the bounds are not those of the gradient. Change them after step()."
            )
        if seen != handed:
            raise ConfigurationError(
                f"step(): the loss saw {seen} examples, but the loader handed out {handed} since the last step. Do one "
                "backward pass over each batch, with zero_grad() before it."
            )
        if gradients and not math.isfinite(float(torch.stack(torch._foreach_norm(gradients)).sum())):
            raise ConfigurationError(
                "step(): a gradient is NaN or infinite, so an input is. Put dplip.nn.BallProjection(radius) first in "
                "the model, which neutralises such inputs, or clean the data."
            )


def _check_parameters(optimizer: Optimizer, model: nn.Module) -> None:
    if isinstance(optimizer, DPLipOptimizer):
        raise ConfigurationError("optimizer: it is already private. Give the plain torch optimizer.")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held]
    if missing:
        raise ConfigurationError(
            f"optimizer: it lacks the trainable parameter {missing[0]!r}. Build it over model.parameters(), or freeze "
            "that parameter with requires_grad_(False)."
        )
    for group in optimizer.param_groups:
        if not 0 <= float(group.get("lr", 0.0)) < math.inf:
            raise ConfigurationError(f"lr={group['lr']}: a learning rate is a finite number >= 0.")
    own = {id(p) for p in model.parameters()}
    if held - own:
        raise ConfigurationError(
            f"optimizer: it holds {len(held - own)} parameters that are not the model's, which would be trained "
            "without noise. Build it over model.parameters()."
        )
