"""The sensitivities of a step: how far two neighbouring sums of gradients may lie apart, rounding included."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dplip.accounting import NEIGHBORING
from dplip.errors import ConfigurationError
from dplip.losses import Loss
from dplip.losses.base import require_separate
from dplip.nn.bounded.slack import adaptive_layers
from dplip.nn.sums import added, apart, lost, most_examples
from dplip.norms import NormCache
from dplip.propagation import Walk
from dplip.propagation.guards import guards_of
from dplip.sensitivities import Sensitivities, enforced_sensitivity
from dplip.sensitivities.propagated import constant_sensitivity, require_loss, sensitivity_of
from dplip.training.batches import Batches
from dplip.training.gradient_monitor import CHANGED, PASSES

NOTED_ROUNDING = 0.2
"""A warning is given if the rounding of sums over a batch adds more noise than this share."""

GROWTH = 10.0
"""A warning is given if the sensitivity has grown by this factor since the start."""


class StepBounds:
    """The sensitivities of a private step for the present weights, computed again where something has changed.

    Args:
        model, loss, input_shape, batches, neighboring, half_precision: see :class:`dplip.DPLipOptimizer`.
        drift: relative looseness allowed to operator norms that are carried over steps.

    Attributes:
        walk: the traced model.
        cache: the norms of the model's weights.
        most: the most examples in a batch, but for a negligible chance.
        planned: the total sensitivity at the first weights.

    Raises:
        UnboundedOperationError, UnboundedInputError: the model has no bound.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        input_shape: tuple[int, ...],
        batches: Batches,
        neighboring: str,
        half_precision: bool,
        drift: float,
    ) -> None:
        self._model, self._loss, self._input_shape, self._batches = model, loss, input_shape, batches
        self._factor, self._half = NEIGHBORING[neighboring], half_precision
        self.walk, self.cache = Walk(model, input_shape), NormCache(drift)
        self.most = most_examples(batches.expected_batch_size)
        self._constant: tuple[Any, Sensitivities | None] | None = None  # (state of the loss, bounds)
        self.planned = self().total
        self._warned = False

    @property
    def _slack(self) -> bool:
        """Whether some layer has a slack coordinate."""
        return any(True for _ in adaptive_layers(self._model))

    @property
    def most_in_part(self) -> int:
        """The most examples in a physical batch, but for a negligible chance."""
        return most_examples(getattr(self._batches, "expected_part_size", self._batches.expected_batch_size))

    def __call__(self, rows: list[Tensor] | None = None) -> Sensitivities:
        """The sensitivities of the model that made these public rows; None: of the present model."""
        if not self.walk.current(rows):
            self.walk, self._constant = Walk(self._model, self._input_shape), None
            if rows is not None and not self.walk.explains(rows):
                raise ConfigurationError(f"step(): {CHANGED}")
        require_loss(self._loss)
        shape = self.walk.shape(self.walk.output())
        state = guards_of(self._loss), self._loss.gradient_norms(shape)
        if self._constant is None or self._constant[0] != state:
            require_separate(self._loss, shape, next(p for p in self._model.parameters() if p.requires_grad))
            # A slack coordinate fills the radius, so the radius is charged even where propagated norms are smaller.
            enforced = self._half or self._slack
            constant = enforced_sensitivity(self.walk) if enforced else constant_sensitivity(self.walk, self._loss)
            self._constant = state, constant
        bounds = self._constant[1]
        if bounds is None:
            with self.cache:
                bounds = sensitivity_of(self.walk, self._loss)
        rounding = self._rounding()
        return Sensitivities(
            {
                n: self._factor * (bound * (1 + rounding[n]) + self._lost(n)) if bound else 0.0
                for n, bound in bounds.items()
            }
        )

    def after(self, change: Callable[[], None]) -> None:
        """Let radii change, and nothing else in the model: the trace holds none of them, and bounds scale with them."""
        traced, before = guards_of(self._model) == self.walk.guards, self._radii()
        change()
        if not traced:
            return
        self.walk.guards, now = guards_of(self._model), self._radii()
        factors = {name: {new / old for new, old in zip(now[name], before[name], strict=True)} for name in now}
        state, bounds = self._constant or (None, None)
        if bounds is None or any(len(found) > 1 for found in factors.values()):
            self._constant = None  # layers that share a parameter: computed again
        else:
            scaled = {name: bound * max(factors.get(name, {1.0})) for name, bound in bounds.items()}
            self._constant = state, Sensitivities(scaled)

    def _radii(self) -> dict[str, list[float]]:
        """The radii of all layers that use a parameter, by its name."""
        names = {id(p): name for name, p in self._model.named_parameters()}
        found: dict[str, list[float]] = {}
        for layer in self._model.modules():
            radius = 1.0 if getattr(layer, "slack", None) is None else float(layer.radius)  # type: ignore[arg-type]
            for p in layer.parameters(recurse=False):
                found.setdefault(names[id(p)], []).append(radius)
        return found

    def _lost(self, name: str) -> float:
        how, p = self.walk.summations[name], self._model.get_parameter(name)
        return lost(self.most, how.terms * how.uses, p.numel(), p.dtype)

    def _rounding(self) -> dict[str, float]:
        """Per parameter, how far two neighbouring sums may round apart, in units of what one example adds.

        A physical batch is summed in the parameter's type; these sums are added in float64 and rounded once.
        """
        part, found = self.most_in_part, {}
        of_slack = apart(part, 1, False, torch.float64) + added(part, PASSES, torch.float64) if self._slack else 0.0
        for name, how in self.walk.summations.items():
            dtype = self._model.get_parameter(name).dtype
            summed = apart(part, how.terms, how.blocked, torch.float64 if how.exact else dtype)
            found[name] = summed + of_slack + added(part, how.uses * PASSES, dtype) + added(self.most, 1, dtype)
        return found

    def warn_of_rounding(self) -> None:
        """Warn if the rounding of sums makes the noise much larger."""
        name, most = max(self._rounding().items(), key=lambda item: item[1])
        if most > NOTED_ROUNDING:
            warnings.warn(
                f"neighbouring sums of the gradient of {name!r} may round apart by {most:.0%} of what one example "
                "adds, and the noise is larger by as much. Give a smaller max_physical_batch_size (512, say), which "
                "changes neither the batch nor what is spent.",
                stacklevel=3,
            )

    def warn_of_growth(self, total: float) -> None:
        """Warn once if the sensitivity has grown much since the first step, before the budget is spent."""
        if total > GROWTH * self.planned and not self._warned and not self._slack:
            self._warned = True
            warnings.warn(
                f"the sensitivity has grown from {self.planned:.3g} to {total:.3g}, and the noise with it, because "
                "the weights grow. Use dplip.nn.bound_gradients(model), whose bounds do not depend on them, orthogonal "
                "layers (dplip.nn.OrthogonalLinear), or a lower learning rate.",
                stacklevel=3,
            )
