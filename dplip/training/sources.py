"""Where the bound of one example's gradient comes from: norms that are propagated, or layers that enforce it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

from torch import Tensor, nn

from dplip.errors import ConfigurationError, DPLipError, UnboundedInputError, UnboundedOperationError
from dplip.losses import Loss
from dplip.losses.base import require_separate
from dplip.nn.bounded import JointRadius, bounds_gradients
from dplip.nn.bounded.joint import joint_radius
from dplip.nn.bounded.slack import adaptive_layers
from dplip.norms import NormCache
from dplip.propagation import Walk
from dplip.propagation.guards import guards_of
from dplip.rules import Summation
from dplip.runtime.example import Example
from dplip.sensitivities import Sensitivities, enforced_sensitivity
from dplip.sensitivities.enforced_model import EnforcedModel
from dplip.sensitivities.propagated import (
    bounds_of,
    constant_sensitivity,
    or_by_layers,
    require_loss,
    sensitivity_of,
)
from dplip.sensitivities.uses import Use
from dplip.training.passes import CHANGED, EnforcedPasses, Passes, PropagatedPasses, Seen


class Source(Protocol):
    """Bounds of one example's gradient of each trained parameter, in exact sums over a batch."""

    @property
    def draws(self) -> bool:
        """Whether the model may draw random numbers."""

    @property
    def summations(self) -> Mapping[str, Summation]:
        """How the gradient of each parameter is summed over a batch."""

    def __call__(self, seen: Seen | None) -> Sensitivities:
        """The bounds of what the monitor saw of a batch; None: of the present model."""

    def passes(self) -> Passes:
        """A judge of the model's forward passes."""

    def after(self, change: Callable[[], None]) -> None:
        """Let radii change, and nothing else in the model."""


class Propagated:
    """Norms that are walked through the trace of a model, for the present weights where they depend on them.

    Args:
        walk, loss: the traced model and its loss.
        half_precision: believe only what layers enforce (:mod:`dplip.sensitivities.enforced`).
        cache: the norms of the model's weights.
    """

    def __init__(self, walk: Walk, loss: Loss, half_precision: bool, cache: NormCache) -> None:
        self.walk, self._loss, self._half, self._cache = walk, loss, half_precision, cache
        self._constant: tuple[Any, Any] | None = None  # (state of the loss, bounds that hold for all weights, or None)

    @property
    def draws(self) -> bool:
        return self.walk.draws

    @property
    def summations(self) -> Mapping[str, Summation]:
        return self.walk.summations

    def __call__(self, seen: Seen | None) -> Sensitivities:
        rows: list[Tensor] | None = None if seen is None else seen.rows
        if not self.walk.current(rows):
            self.walk, self._constant = Walk(self.walk.model, self.walk.input_shape), None
            if rows is not None and not self.walk.explains(rows):
                raise ConfigurationError(f"step(): {CHANGED}")
        require_loss(self._loss)
        shape = self.walk.shape(self.walk.output())
        state = guards_of(self._loss), self._loss.gradient_norms(shape)
        if self._constant is None or self._constant[0] != state:
            require_separate(self._loss, shape, _like(self.walk.model))
            # A slack coordinate fills the radius, so the radius is charged even where propagated norms are smaller.
            enforced = self._half or any(True for _ in adaptive_layers(self.walk.model))
            constant = enforced_sensitivity(self.walk) if enforced else constant_sensitivity(self.walk, self._loss)
            self._constant = state, constant
        if self._constant[1] is not None:
            return self._constant[1]
        with self._cache:
            return sensitivity_of(self.walk, self._loss)

    def passes(self) -> Passes:
        return PropagatedPasses(self.walk.model, self.walk.input_shape, self._half)

    def after(self, change: Callable[[], None]) -> None:
        """The trace holds no radius, and bounds scale with them."""
        model = self.walk.model
        traced, factors = guards_of(model) == self.walk.guards, _factors(model, change)
        if not traced:
            return
        self.walk.guards = guards_of(model)
        state, bounds = self._constant or (None, None)
        if bounds is None or factors is None:
            self._constant = None  # computed again
        else:
            scaled = {name: bound * factors.get(name, 1.0) for name, bound in bounds.items()}
            self._constant = state, Sensitivities(scaled)


class Enforced:
    """The radii of the layers that a pass used, whatever the weights, the inputs and the loss.

    Args:
        model, loss: the enforced model and its loss.
    """

    def __init__(self, model: EnforcedModel, loss: Loss) -> None:
        self.model, self._loss = model, loss
        self._uses: Mapping[str, Use] = model.planned
        self._radii: frozenset[JointRadius | None] = model.radii
        self._state: Any = None

    @property
    def draws(self) -> bool:
        return self.model.draws

    @property
    def summations(self) -> Mapping[str, Summation]:
        return {name: use.summation for name, use in self._uses.items()}

    def __call__(self, seen: Seen | None) -> Sensitivities:
        require_loss(self._loss)
        if not self.model.current():
            self.model.plan()
            self._uses, self._radii = self.model.planned, self.model.radii
        shape = None if seen is None else seen.shape
        if shape is not None and self._state != (shape, guards_of(self._loss)):
            require_separate(self._loss, shape, _like(self.model.model))
            self._state = shape, guards_of(self._loss)
        if seen is not None:  # else as in the last pass
            self._uses = {name: seen.uses.get(name, use) for name, use in self.model.planned.items()}
            self._radii = seen.radii if seen.uses else self.model.radii
        return bounds_of(self._uses, self._radii)

    def passes(self) -> Passes:
        return EnforcedPasses(self.model)

    def after(self, change: Callable[[], None]) -> None:
        planned, factors = self.model.current(), _factors(self.model.model, change)
        if planned and factors is not None:  # else it is tried again
            self.model.rescale(factors)


def source_of(model: nn.Module, loss: Loss, example: Example, half_precision: bool, cache: NormCache) -> Source:
    """The propagated bounds of a model that can be traced; else the enforced ones, if its layers bound their gradients.

    Those of a joint radius are enforced ones: which layers share it is read off the graph.

    Raises:
        DPLipError: the model has neither.
    """
    joint = joint_radius(model)
    if joint is not None and any(True for _ in adaptive_layers(model)):
        raise ConfigurationError(
            f"radius={joint:g}: some layers have the radius 'auto', which follows the gradients of one layer. Call "
            "bound_gradients on a fresh model, with either."
        )
    walk = traced(model, example)
    if walk is None:
        return Enforced(EnforcedModel(model, example), loss)
    found = Propagated(walk, loss, half_precision, cache)
    try:
        found(None)
        return found
    except (UnboundedInputError, UnboundedOperationError):
        if bounds_gradients(model):  # perhaps by code of the model itself, outside of the layers that have rules
            with suppress(DPLipError):
                return Enforced(EnforcedModel(model, example), loss)
        raise


def traced(model: nn.Module, example: Example) -> Walk | None:
    """The trace of a model; None: it has none, or a joint radius, and its layers bound their own gradients.

    Raises:
        DPLipError: it has none, and its layers bound nothing.
    """
    if example.shape is None or joint_radius(model) is not None:
        return None
    held = [(vars(module), dict(vars(module))) for module in model.modules()]
    try:
        walk = Walk(model, example.shape)
        walk(None)  # refuses what its rules do not cover
        return walk
    except UnboundedOperationError as wrong:
        if bounds_gradients(model):
            for attributes, before in held:  # the model may have kept something of the trace
                attributes.clear()
                attributes.update(before)
            return None
        raise or_by_layers(wrong) from None


def _factors(model: nn.Module, change: Callable[[], None]) -> dict[str, float] | None:
    """How a change of radii scales the bound of each parameter; None: layers that share one are scaled differently."""
    before = _radii(model)
    change()
    found = {n: {new / old for new, old in zip(now, before[n], strict=True)} for n, now in _radii(model).items()}
    return {n: max(ratios) for n, ratios in found.items()} if all(len(r) == 1 for r in found.values()) else None


def _radii(model: nn.Module) -> dict[str, list[float]]:
    """The radii of all layers that use a parameter, by its name; 1 for those that stay."""
    names = {id(p): name for name, p in model.named_parameters()}
    found: dict[str, list[float]] = {}
    for layer in model.modules():
        radius = 1.0 if getattr(layer, "slack", None) is None else float(layer.radius)  # type: ignore[arg-type]
        for p in layer.parameters(recurse=False):
            found.setdefault(names[id(p)], []).append(radius)
    return found


def _like(model: nn.Module) -> nn.Parameter:
    return next(p for p in model.parameters() if p.requires_grad)
