"""The private step: bounds of this step's weights, one event, one noise draw, the user's optimizer, a projection."""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dplip.accounting import NEIGHBORING, Event
from dplip.accounting.budget import Fixed
from dplip.accounting.events import require_relation
from dplip.constraints import project
from dplip.errors import ConfigurationError
from dplip.losses import Loss
from dplip.losses.base import require_separate
from dplip.nn.sums import added, apart, lost, most_examples
from dplip.noise import GaussianNoise, split
from dplip.norms import NormCache
from dplip.propagation import Walk
from dplip.propagation.guards import guards_of
from dplip.runtime.precision import require_full_precision
from dplip.runtime.processes import OwnProcess
from dplip.sensitivities import Sensitivities, enforced_sensitivity
from dplip.sensitivities.propagated import constant_sensitivity, require_loss, sensitivity_of
from dplip.training.gradient_monitor import CHANGED, PASSES, Witness
from dplip.training.wrapped import (
    Group,
    OnlyPrivately,
    check_groups,
    check_wrapped,
    keep_gradients_of,
    same_settings,
    settings,
)
from dplip.validate import whole

ROUNDING = 0.2
"""More noise than this share, for the rounding of sums over a batch, is worth a warning."""

GROWTH = 10.0
"""A sensitivity that has grown by this factor since the start is worth a warning."""


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

    def event(self, noise_multiplier: float) -> Event: ...

    def take(self) -> int: ...


class DPLipOptimizer(Fixed, Optimizer):
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
        project_every: constrained weights are projected after every so many steps. More than 1 saves time where the
            sensitivity does not depend on the weights (:func:`dplip.sensitivities.propagated.constant_sensitivity`).
        half_precision: allow gradients that were computed under ``torch.autocast``; then the bounds are those that the
            layers enforce by themselves, and every trainable parameter needs one (:mod:`dplip.sensitivities.enforced`).
        distributed: ``"independent"``: allow to be one of several processes, each of which makes a release of its own.
        trust_optimizer: take an optimizer that is not of torch.optim, or has hooks on its step. **Nothing checks it**:
            if it keeps gradients of its own, what it releases has no noise. Reports name it.

    Raises:
        ConfigurationError: the optimizer lacks a trainable parameter or holds a foreign one.

    Guarantee: given that the loader samples as it says, one step is the Gaussian mechanism of multiplier sigma on
    such batches (``event``) under the named neighbouring relation; all else in it is post-processing.
    """

    _FIXED = frozenset({"original", "model", "loss", "batches", "neighboring", "noise"})

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
        charge: Callable[[Event], None] | None = None,
        noise: GaussianNoise | None = None,
        drift: float = 0.01,
        project_every: int = 1,
        half_precision: bool = False,
        distributed: str | None = None,
        trust_optimizer: bool = False,
    ) -> None:
        self._process = OwnProcess(distributed)
        if neighboring not in NEIGHBORING:
            raise ConfigurationError(f"neighboring={neighboring!r}: choose one of {list(NEIGHBORING)}.")
        event = batches.event(noise_multiplier)  # refuses what is none
        require_relation(event, neighboring)
        self._trusted = trust_optimizer
        _check_optimizer(optimizer, model, trust_optimizer)
        self._noise_multiplier = noise_multiplier
        self.original, self.model, self.loss = optimizer, model, loss
        self.batches, self.neighboring = batches, neighboring
        self._constants = event, batches.expected_batch_size
        self.noise = GaussianNoise() if noise is None else noise
        self._input_shape, self._charge = input_shape, charge
        self._cache, self._steps = NormCache(drift), 0
        self._project_every = whole("project_every", project_every, least=1)
        self._walk, self._half = Walk(model, input_shape), half_precision
        self._most = most_examples(self.expected_batch_size)
        self._constant: tuple[Any, Sensitivities | None] | None = None  # with the state of the loss that it is for
        self._planned = self.sensitivities().total  # refuses what cannot be bounded before anything is trained
        self._warned = False
        self._warn_of_rounding()
        self._accumulating: int | None = None  # the logical batch of which parts are summed up
        self._sums: dict[str, Tensor] = {}  # the gradients of those, in float64
        for p in model.parameters():
            p.grad = None  # whatever is there did not come through the loss
        self._witness = Witness(model, loss, self._walk.input_shape, half_precision, self.noise.masks)
        self._witness.draws, self._witness.most = self._walk.draws, self._most_in_part
        self._settings: list[dict[str, Any]] | None = None  # of the groups, when the present batch was begun
        self._only = OnlyPrivately(self)
        self._only.put(optimizer)
        # Schedulers want an Optimizer: this one shares the wrapped optimizer's groups and state. Hooks on its step are
        # its own, and run around the whole of a private step.
        for table in (name for name in vars(optimizer) if name.startswith("_optimizer_") and name.endswith("_hooks")):
            setattr(self, table, OrderedDict() if "_step_" in table else getattr(optimizer, table))
        self._patch_step_function()
        self._watch_groups()

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Those of the wrapped optimizer."""
        return self.original.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """That of the wrapped optimizer."""
        return self.original.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        return self.original.defaults

    @property
    def trusted(self) -> str | None:
        """The wrapped optimizer's class, if nothing but the user's word speaks for it."""
        return type(self.original).__name__ if self._trusted else None

    @property
    def noise_multiplier(self) -> float:
        return self._noise_multiplier

    @property
    def event(self) -> Event:
        """What one step spends: the loader says what its batches are."""
        return self.batches.event(self._noise_multiplier)

    @property
    def expected_batch_size(self) -> float:
        """The public number that the noisy sum is divided by."""
        return self.batches.expected_batch_size

    @property
    def _most_in_part(self) -> int:
        return most_examples(getattr(self.batches, "expected_part_size", self.expected_batch_size))

    def sensitivities(self) -> Sensitivities:
        """Per parameter, how far two neighbouring sums can lie apart, for the present weights and mode."""
        return self._bounds(None)

    def _bounds(self, rows: list[Tensor] | None) -> Sensitivities:
        """:meth:`sensitivities` of the model that made these public rows; None: of the present one."""
        if not self._walk.current(rows):
            self._walk, self._constant = Walk(self.model, self._input_shape), None
            if rows is not None and not self._walk.explains(rows):
                raise ConfigurationError(f"step(): {CHANGED}")
        require_loss(self.loss)
        shape = self._walk.shape(self._walk.output())
        state = guards_of(self.loss), self.loss.gradient_norms(shape)
        if self._constant is None or self._constant[0] != state:
            require_separate(self.loss, shape, next(p for p in self.model.parameters() if p.requires_grad))
            constant = enforced_sensitivity(self._walk) if self._half else constant_sensitivity(self._walk, self.loss)
            self._constant = state, constant
        bounds = self._constant[1]
        if bounds is None:
            with self._cache:
                bounds = sensitivity_of(self._walk, self.loss)
        factor, rounding = NEIGHBORING[self.neighboring], self._rounding()
        return Sensitivities(
            {n: factor * (bound * (1 + rounding[n]) + self._lost(n)) if bound else 0.0 for n, bound in bounds.items()}
        )

    def _lost(self, name: str) -> float:
        how, p = self._walk.summations[name], self.model.get_parameter(name)
        return lost(self._most, how.terms * how.uses, p.numel(), p.dtype)

    def _rounding(self) -> dict[str, float]:
        """Per parameter, how far two neighbouring sums may round apart, in units of what one example adds.

        The sum of a physical batch is in the parameter's type, the sum of those in float64, and rounded at the end.
        """
        part, found = self._most_in_part, {}
        for name, how in self._walk.summations.items():
            dtype = self.model.get_parameter(name).dtype
            summed = apart(part, how.terms, how.blocked, torch.float64 if how.exact else dtype)
            found[name] = summed + added(part, how.uses * PASSES, dtype) + added(self._most, 1, dtype)
        return found

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one private step, or accumulate while the batch is incomplete.

        Raises:
            ConfigurationError: the gradients are not those of one backward pass of the declared loss over the examples
                handed out since the last step, are not finite, or may have been computed in TF32 or bfloat16. Nothing
                is spent or changed.
            BudgetExceededError: the step would exceed the budget. Nothing is spent or changed.
        """
        if closure is not None:
            raise ConfigurationError(
                "closure: a private step uses one gradient, and would not run it. Call backward() first, then step() "
                "without a closure; in Lightning, set automatic_optimization = False, and do both in training_step()."
            )
        self._process.require()
        self._check_settings()
        if self._accumulating != self.batches.number:
            self._sums = {}  # of a batch that was abandoned
        if not self.batches.complete:
            self._accumulating = self.batches.number
            self._witness.settle()
            self._collect()
            return
        _check_optimizer(self.original, self.model, self._trusted)
        self._check_constants()
        require_full_precision(self.model)
        parameters = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self._check_gradients(list(parameters.values()))
        bounds = self._bounds(self._witness.rows)
        self._witness.draws = self._walk.draws
        self._warn_of_growth(bounds.total)
        stds = split(bounds, {n: p.numel() for n, p in parameters.items()}, self.noise_multiplier)
        if self._charge is not None:
            self._charge(self.event)
        empty = self.batches.take() == 0
        self._witness.reset()
        if self._sums:
            self._collect()
        sums, self._sums, self._accumulating = self._sums, {}, None
        for name, p in parameters.items():
            if name in sums:
                p.grad = sums[name].to(p.dtype)
            elif p.grad is None or empty:
                p.grad = torch.zeros_like(p)
            self.noise.add_(p.grad, stds[name])
            p.grad.div_(self.expected_batch_size)
        keep_gradients_of(list(parameters.values()), self.original)
        self._settings, self._only.open = None, True
        try:
            self.original.step()
        finally:
            self._only.open = False
        self._witness.reset()  # what is in the gradients now is released
        self._steps += 1
        if self._steps % self._project_every == 0:
            with self._cache:
                project(self.model)

    def _collect(self) -> None:
        """Add the gradients of a physical batch to those of the others, and clear them."""
        for name, p in self.model.named_parameters():
            if p.grad is not None:
                self._sums[name] = p.grad.double() if name not in self._sums else self._sums[name].add_(p.grad)
                p.grad = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, unless a part of the present batch is in them."""
        if self._accumulating == self.batches.number:
            return
        self.original.zero_grad(set_to_none)
        self._witness.reset()

    def state_dict(self) -> dict[str, Any]:
        return self.original.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._settings is not None:
            raise ConfigurationError("load_state_dict(): only a part of a batch was handed out. Finish its step first.")
        self.original.load_state_dict(state_dict)
        self._watch_groups()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        raise ConfigurationError("add_param_group: build the optimizer over all trainable parameters of the model.")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise ConfigurationError(
            "DPLipOptimizer: a copy would take steps that no budget counts. Copy the model and optimizer.state_dict(), "
            "and make a new private optimizer; a trainer goes on from its output_dir: fit(resume=True)."
        )

    def __repr__(self) -> str:
        return f"DPLipOptimizer({self.original!r}, noise_multiplier={self.noise_multiplier})"

    def _warn_of_rounding(self) -> None:
        name, most = max(self._rounding().items(), key=lambda item: item[1])
        if most > ROUNDING:
            warnings.warn(
                f"neighbouring sums of the gradient of {name!r} may round apart by {most:.0%} of what one example "
                "adds, and the noise is larger by as much. Give a smaller max_physical_batch_size (512, say), which "
                "changes neither the batch nor what is spent.",
                stacklevel=3,
            )

    def _warn_of_growth(self, total: float) -> None:
        """Noise makes weights grow, weights the bound, and the bound the noise: say so before the budget is gone."""
        if total > GROWTH * self._planned and not self._warned:
            self._warned = True
            warnings.warn(
                f"the sensitivity has grown from {self._planned:.3g} to {total:.3g}, and the noise with it, because "
                "the weights grow. Use dplip.nn.bound_gradients(model), whose bounds do not depend on them, orthogonal "
                "layers (dplip.nn.OrthogonalLinear), or a lower learning rate.",
                stacklevel=3,
            )

    def _watch_groups(self) -> None:
        """Have the groups refuse to be set while a batch is incomplete, wherever they come from."""
        for index, group in enumerate(self.original.param_groups):
            if not isinstance(group, Group):
                self.original.param_groups[index] = group = Group(group)
            group.incomplete = self._incomplete

    def _incomplete(self) -> bool:
        return self._settings is not None and self._accumulating == self.batches.number

    def _check_settings(self) -> None:
        """Refuse parts of one batch that are trained with different settings: the number of parts is private."""
        self._watch_groups()
        present = settings(self.original)
        if self._accumulating != self.batches.number:
            self._settings = None
        if self._settings is not None and not same_settings(self._settings, present):
            raise ConfigurationError(
                "step(): a learning rate, or another setting of the optimizer, has changed between the parts of one "
                "batch, so it would depend on their number, which is private. Change it after the whole batch's step: "
                "if loader.complete."
            )
        if not self.batches.complete:
            self._settings = present

    def _check_constants(self) -> None:
        present = self.event, self.expected_batch_size
        if present != self._constants:
            raise ConfigurationError(
                f"step(): the loader's batches are {present} now, and were {self._constants} when this optimizer was "
                "made, so a charge would not be for what was drawn. Make another loader and another private optimizer."
            )

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
        if handed > self._most:
            raise ConfigurationError(
                f"step(): the loader handed out {handed} examples for an expected {self.expected_batch_size:g}, which "
                "no chance explains, so the rounding of their sum is not covered. Take one step for each batch; and if "
                "public_size is far below the data's, give a larger number that is public."
            )
        self._witness.check()
        if self._witness.problem:
            raise ConfigurationError(f"step(): {self._witness.problem}")
        if seen != handed:
            raise ConfigurationError(
                f"step(): the loss saw {seen} examples, but the loader handed out {handed} since the last step. Do one "
                "backward pass over each batch, with zero_grad() before it."
            )
        if self._witness.crowded:
            raise ConfigurationError(f"step(): {self._witness.crowded}")
        if gradients and not math.isfinite(float(torch.stack(torch._foreach_norm(gradients)).sum())):
            raise ConfigurationError(
                "step(): a gradient is NaN or infinite. Either an input is: put dplip.nn.BallProjection(radius) first "
                "in the model, which neutralises such inputs, or clean the data. Or the weights have grown until "
                f"numbers overflow (the sensitivity is {self.sensitivities().total:.3g}; it was {self._planned:.3g} at "
                "first): use dplip.nn.bound_gradients(model) or orthogonal layers, or a lower learning rate."
            )


def _check_optimizer(optimizer: Optimizer, model: nn.Module, trusted: bool) -> None:
    if isinstance(optimizer, DPLipOptimizer):
        raise ConfigurationError("optimizer: it is already private. Give the plain torch optimizer.")
    check_wrapped(optimizer, trusted)
    check_groups(optimizer, model)
