"""The private step: it bounds the sum, charges one event, adds noise, runs the user's optimizer and projects."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dplip.accounting import NEIGHBORING, Event
from dplip.accounting.budget import Fixed
from dplip.accounting.events import require_relation
from dplip.constraints import project
from dplip.errors import ConfigurationError
from dplip.losses import Loss
from dplip.noise import GaussianNoise, split
from dplip.runtime import group as processes
from dplip.runtime.example import Example
from dplip.runtime.precision import require_full_precision
from dplip.runtime.processes import OwnProcess
from dplip.sensitivities import Sensitivities
from dplip.training.adam import CorrectedAdam
from dplip.training.alike import facts, largest, standing
from dplip.training.batches import Batches
from dplip.training.gradient_monitor import GradientMonitor
from dplip.training.learned import Learned, Learning
from dplip.training.radii import Radii, change_units
from dplip.training.replicas import unwrapped
from dplip.training.sources import Enforced
from dplip.training.step_bounds import StepBounds
from dplip.training.step_checks import check_gradients
from dplip.training.wrapped import (
    OnlyPrivately,
    Steady,
    check_groups,
    check_wrapped,
    keep_gradients_of,
)
from dplip.validate import whole


class DPLipOptimizer(Fixed, Optimizer):
    """A torch optimizer whose every step is differentially private, without a gradient per example.

    ``step()`` takes the summed gradient of the batch in ``.grad``, adds Gaussian noise calibrated to the sensitivity
    of the present weights, divides by the public expected batch size, runs the wrapped optimizer and projects the
    constrained weights. While the loader has handed out only a part of a Poisson batch, it accumulates instead.

    Args:
        optimizer: any torch optimizer over exactly the trainable parameters of the model.
        model: a model whose operations all have a rule.
        loss: the :class:`dplip.losses.Loss` whose backward pass fills the gradients.
        input_shape: shape of one example; or a :class:`dplip.Example`, where the model takes something else than one
            tensor of floating-point numbers.
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
        distributed: ``"auto"``, or a group of :func:`dplip.distributed.group`: one of several processes that take one
            step together; ``"independent"``: one of several, each of which makes a release of its own.
        trust_optimizer: take an optimizer that is not of torch.optim, or has hooks on its step. **Nothing checks it**:
            if it keeps gradients of its own, what it releases has no noise. Reports name it.

    Attributes:
        radii: the radii that follow the gradients (:class:`dplip.training.radii.Radii`).

    Raises:
        ConfigurationError: the optimizer lacks a trainable parameter or holds a foreign one.
        GroupError: the processes do not train alike, or one has ended.

    Guarantee: given that the loader samples as it says, one step is the Gaussian mechanism of multiplier sigma on
    such batches (``event``) under the named neighbouring relation; all else in it is post-processing. This holds for
    any number of processes: all draw one batch, each example is in one process's sum, the sums are added and rounded,
    and then each entry gets one draw of noise, in one process.
    """

    _FIXED = frozenset({"original", "model", "loss", "batches", "neighboring", "noise"})

    @processes.together
    def __init__(
        self,
        optimizer: Optimizer,
        *,
        model: nn.Module,
        loss: Loss,
        input_shape: tuple[int, ...] | Example,
        noise_multiplier: float,
        batches: Batches,
        neighboring: str = "add_remove",
        charge: Callable[[Event], None] | None = None,
        noise: GaussianNoise | None = None,
        drift: float = 0.01,
        project_every: int = 1,
        half_precision: bool = False,
        distributed: str | processes.Group | None = None,
        trust_optimizer: bool = False,
    ) -> None:
        self._process = OwnProcess(distributed)
        self._group, model = self._process.group, unwrapped(model)
        if neighboring not in NEIGHBORING:
            raise ConfigurationError(f"neighboring={neighboring!r}: choose one of {list(NEIGHBORING)}.")
        event = batches.event(noise_multiplier)  # refuses an invalid multiplier
        require_relation(event, neighboring)
        self._trusted = trust_optimizer
        _check_optimizer(optimizer, model, trust_optimizer)
        self._noise_multiplier = noise_multiplier
        self.original, self.model, self.loss = optimizer, model, loss
        self.batches, self.neighboring = batches, neighboring
        self._constants = event, batches.expected_batch_size
        self.noise = GaussianNoise() if noise is None else noise
        self._charge = charge
        others = {"event": self._constants, "neighboring": neighboring, "project_every": project_every, "drift": drift}
        self._group.same(lambda: facts(model, loss, optimizer, self.noise, half_precision=half_precision, **others))
        batches.join(self._group)
        self.noise.separate(self._group.rank)
        self._group.share_([*model.parameters(), *model.buffers()])
        self._steps, self._learning = 0, Learning()
        self.radii = Radii(model, batches.expected_batch_size)
        self._project_every = whole("project_every", project_every, least=1)
        example = input_shape if isinstance(input_shape, Example) else Example.of_shape(input_shape)
        self._bounds = StepBounds(model, loss, example, batches, neighboring, half_precision, drift, self._group.size)
        self._bounds.warn_of_rounding()
        self._accumulating: int | None = None  # the logical batch of which parts are summed up
        self._counted = 0  # the examples that these parts had
        self._sums: dict[str, Tensor] = {}  # the summed gradients of the parts, in float64
        for p in model.parameters():
            p.grad = None  # it did not come through the loss
        self._monitor = GradientMonitor(model, loss, self._bounds.source.passes(), self.noise.masks)
        self._monitor.draws, self._monitor.most = self._bounds.source.draws, self._bounds.most_in_part
        self._only = OnlyPrivately(self)
        self._only.put(optimizer)
        # Schedulers want an Optimizer: this one shares the wrapped optimizer's groups and state. Hooks on its step are
        # its own, and run around the whole of a private step.
        for table in (name for name in vars(optimizer) if name.startswith("_optimizer_") and name.endswith("_hooks")):
            setattr(self, table, OrderedDict() if "_step_" in table else getattr(optimizer, table))
        self._patch_step_function()
        self._steady = Steady(optimizer, model, batches)

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The parameter groups of the wrapped optimizer."""
        return self.original.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The state of the wrapped optimizer."""
        return self.original.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        return self.original.defaults

    @property
    def trusted(self) -> str | None:
        """The class of a wrapped optimizer that is trusted without a check; None: it was checked."""
        return type(self.original).__name__ if self._trusted else None

    @property
    def noise_multiplier(self) -> float:
        return self._noise_multiplier

    @property
    def event(self) -> Event:
        """The event of one step, as the loader defines it."""
        return self.batches.event(self._noise_multiplier)

    @property
    def expected_batch_size(self) -> float:
        """The public number that the noisy sum is divided by."""
        return self.batches.expected_batch_size

    @property
    def enforced(self) -> bool:
        """Whether layers bound the gradients: the model has no trace (and so no certificate), or a joint radius."""
        return isinstance(self._bounds.source, Enforced)

    def sensitivities(self) -> Sensitivities:
        """Per parameter, how far two neighbouring sums can lie apart, for the present weights and mode."""
        return self._bounds()

    def learned(self) -> Learned:
        """Per parameter, whether it moved, and how far beside noise alone; ``.warn()`` names what did not learn."""
        return self._learning.learned(self.radii.present(), self.radii.shares)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one private step, or accumulate while the batch is incomplete.

        Raises:
            ConfigurationError: the gradients are not those of one backward pass of the declared loss over the examples
                handed out since the last step, are not finite, or may have been computed in TF32 or bfloat16. Nothing
                is spent or changed.
            BudgetExceededError: the step would exceed the budget. Nothing is spent or changed.
            GroupError: another process has failed, or ended; spent is what the ledger says.
        """
        if closure is not None:
            raise ConfigurationError(
                "closure: a private step uses one gradient, and would not run it. Call backward() first, then step() "
                "without a closure; in Lightning, set automatic_optimization = False, and do both in training_step()."
            )
        parameters = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        with self._group.agreed(self._standing):
            self._process.require()
            self._steady.require()
            self._drop_blank()
            if not self.batches.complete:
                self._accumulating = self.batches.number
                self._monitor.settle()
                self._collect()
                return
            _check_optimizer(self.original, self.model, self._trusted)
            self._check_constants()
            require_full_precision(self.model)
            gradients = [*self._sums.values(), *(p.grad for p in parameters.values() if p.grad is not None)]
            check_gradients(gradients, self.batches, self._monitor, self.loss, self._bounds)
            bounds = self._bounds(self._monitor.seen)
        bounds = largest(self._group, bounds)
        self._monitor.draws = self._bounds.source.draws
        self._bounds.warn_of_growth(bounds.total)
        sizes = {n: p.numel() for n, p in parameters.items()}
        stds = split(bounds, sizes, self.noise_multiplier, bounds.together)
        charge = self._charge
        if charge is not None:
            self._group.in_turn(lambda: charge(self.event))
        self.batches.take()
        self._monitor.reset()
        if self._sums:
            self._collect()
        sums, self._sums, self._accumulating, self._counted = self._sums, {}, None, 0
        whole: dict[str, Tensor] = {}
        for name, p in parameters.items():
            whole[name] = sums[name].to(p.dtype) if name in sums else torch.zeros_like(p) if p.grad is None else p.grad
        slack = self.radii.sums(sums)
        self._add_noise([*((t, stds[n]) for n, t in whole.items()), *((t, stds[n]) for t, n in slack.values())])
        for name, p in parameters.items():
            p.grad = whole[name].div_(self.expected_batch_size)
        self._adapt({path: total for path, (total, _) in slack.items()}, stds)
        deviations = {name: std / self.expected_batch_size for name, std in stds.items()}
        self._learning.record(parameters, deviations)
        if self.radii:
            change_units(self.original, parameters, deviations)
        if isinstance(self.original, CorrectedAdam):
            self.original.tell({p: deviations[name] for name, p in parameters.items()})
        keep_gradients_of(list(parameters.values()), self.original)
        self._only.open = True
        self._steady.release()
        try:
            self.original.step()
        finally:
            self._only.open = False
        self._learning.compare(parameters)
        self._monitor.reset()  # the gradients are public now
        self._steps += 1
        if self._steps % self._project_every == 0:
            with self._bounds.cache:
                project(self.model)

    def _standing(self) -> str:
        places = self.batches.number, self.batches.complete, self.radii.present()
        return standing(self._steps, self.original, self.model, *places)

    def _drop_blank(self) -> None:
        """Drop the gradients of a part without examples, before they are added to those of the others.

        One example more would take the place of the blank row, and so move the sum by two gradients.
        """
        if self._accumulating != self.batches.number:
            self._sums, self._counted = {}, 0  # the batch before was abandoned
        if self.batches.handed_out == self._counted and self.batches.logical_batches == 1:
            for _, leaf in [*self.model.named_parameters(), *self.radii.leaves()]:
                leaf.grad = None
            self._monitor.discard()

    def _add_noise(self, sums: list[tuple[Tensor, float]]) -> None:
        """Add up the sums of all processes, and then noise of these deviations, to each entry where it is owned."""
        for index, owned in self._group.summed([total for total, _ in sums]):
            self.noise.add_to_part_(owned, sums[index][1], sums[index][0].numel())

    def _collect(self) -> None:
        """Add the gradients of a physical batch to those of the others, and clear them."""
        self._counted = self.batches.handed_out
        for name, p in [*self.model.named_parameters(), *self.radii.leaves()]:
            if p.grad is not None:
                self._sums[name] = p.grad.double() if name not in self._sums else self._sums[name].add_(p.grad)
                p.grad = None

    def _adapt(self, noisy: dict[str, Tensor], stds: dict[str, float]) -> None:
        """Move the radii of adaptive layers by their noisy slack, for the steps to come."""
        if self.radii:
            radii = self.radii.next(noisy, stds, {n: how.uses for n, how in self._bounds.source.summations.items()})
            self._bounds.source.after(lambda: self.radii.set(radii))
            self.state["radii"] = radii

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, unless a part of the present batch is in them."""
        if self._accumulating == self.batches.number:
            return
        self.original.zero_grad(set_to_none)
        self.radii.clear()
        self._monitor.reset()

    def leave(self) -> None:
        """End a forward pass that was interrupted: until the next one, torch would still be watched."""
        self._monitor.leave()

    def state_dict(self) -> dict[str, Any]:
        return self.original.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steady.require_none()
        self.original.load_state_dict(state_dict)
        self._bounds.source.after(lambda: self.radii.set(self.state.get("radii", {})))
        self._steady.watch()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        raise ConfigurationError("add_param_group: build the optimizer over all trainable parameters of the model.")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise ConfigurationError(
            "DPLipOptimizer: a copy would take steps that no budget counts. Copy the model and optimizer.state_dict(), "
            "and make a new private optimizer; a trainer goes on from its output_dir: fit(resume=True)."
        )

    def __repr__(self) -> str:
        return f"DPLipOptimizer({self.original!r}, noise_multiplier={self.noise_multiplier})"

    def _check_constants(self) -> None:
        present = self.event, self.expected_batch_size
        if present != self._constants:
            raise ConfigurationError(
                f"step(): the loader's batches are {present} now, and were {self._constants} when this optimizer was "
                "made, so a charge would not be for what was drawn. Make another loader and another private optimizer."
            )


def _check_optimizer(optimizer: Optimizer, model: nn.Module, trusted: bool) -> None:
    if isinstance(optimizer, DPLipOptimizer):
        raise ConfigurationError("optimizer: it is already private. Give the plain torch optimizer.")
    check_wrapped(optimizer, trusted)
    check_groups(optimizer, model)
