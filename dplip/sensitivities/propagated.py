"""Sensitivity: per parameter, an l2 bound of one example's gradient, from the pullback of the loss's gradient norms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from dplip.errors import ConfigurationError, DPLipError, UnboundedInputError, UnboundedOperationError
from dplip.losses import Loss
from dplip.losses.base import require_separate
from dplip.nn.bounded import JointRadius, bounds_gradients
from dplip.nn.bounded.joint import joint_radius
from dplip.norms import Norms, largest
from dplip.propagation import Walk
from dplip.rounding import Rounded
from dplip.runtime.example import Example
from dplip.sensitivities.enforced_model import EnforcedModel
from dplip.sensitivities.uses import Use, bound_of_all

GRADIENT_SLACK = 1e-5
"""Relative slack, 168 units of float32, for roundings that :class:`dplip.rounding.Rounded` omits: a few of a gradient's
products, and one for each further use of a value, whose cotangents add up."""


class Sensitivities(Mapping[str, float]):
    """Parameter name -> an l2 bound of one example's gradient of the loss; ``str`` gives a table.

    Args:
        bounds: these bounds.
        together: a bound of the gradients of all parameters as one vector; None: what follows from theirs.
    """

    def __init__(self, bounds: Mapping[str, float], together: float | None = None) -> None:
        self._bounds, self.together = dict(bounds), together

    def __getitem__(self, name: str) -> float:
        return self._bounds[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._bounds)

    def __len__(self) -> int:
        return len(self._bounds)

    @property
    def total(self) -> float:
        """The l2 bound of the whole gradient: of all together, or the root of the sum of squares."""
        return math.sqrt(sum(b * b for b in self._bounds.values())) if self.together is None else self.together

    def __repr__(self) -> str:
        return f"Sensitivities({self._bounds}{'' if self.together is None else f', together={self.together}'})"

    def __str__(self) -> str:
        width = max([len("parameter"), *map(len, self._bounds)])
        rows = [f"{name:<{width}}  {bound:12.6g}" for name, bound in self._bounds.items()]
        return "\n".join(
            [f"{'parameter':<{width}}  {'sensitivity':>12}", *rows, f"{'total':<{width}}  {self.total:12.6g}"]
        )


def sensitivity(
    model: nn.Module, loss: Loss, input_shape: tuple[int, ...] | Example, input_norms: Norms | None = None
) -> Sensitivities:
    """Bound one example's gradient of the loss, parameter by parameter, for the present weights and mode.

    Args:
        model: a module whose operations have rules; its first layer usually bounds the input (``BallProjection``).
        loss: a :class:`dplip.losses.Loss`.
        input_shape: shape of one example, without the batch; or an :class:`dplip.Example`, for a model that takes
            something else than one tensor of floating-point numbers, whose layers bound their own gradients.
        input_norms: bounds of the input; None: no bound is known.

    Raises:
        ConfigurationError: the loss mixed the examples of a test batch.
        UnboundedOperationError: an operation of the model has no rule.
        UnboundedInputError: a parameter's gradient grows with an unbounded input.

    Guarantee: for every example (within ``input_norms``) and every target, the l2 norm of the gradient of
    ``loss(model(x), y)`` in each trainable parameter, as it is computed in floating point, is at most its entry. Each
    value, cotangent and gradient is allowed the roundings of its own sums, which grow with their width.
    """
    require_loss(loss)
    if joint_radius(model) is not None and model.training:
        return _by_layers(model, input_shape if isinstance(input_shape, Example) else Example.of_shape(input_shape))
    if isinstance(input_shape, Example):
        if input_shape.shape is None:
            return _by_layers(model, input_shape)
        input_shape = input_shape.shape
    try:
        walk = Walk(model, input_shape)
        bounds = sensitivity_of(walk, loss, input_norms)
        require_separate(loss, walk.shape(walk.output()), next(model.parameters(), torch.zeros(0)))
        return bounds
    except UnboundedInputError:
        if not bounds_gradients(model):
            raise
    except UnboundedOperationError as wrong:
        if not bounds_gradients(model):
            raise or_by_layers(wrong) from None
    return _by_layers(model, Example.of_shape(input_shape))


def or_by_layers(wrong: UnboundedOperationError) -> UnboundedOperationError:
    """The refusal of an operation, with the way that needs no rule."""
    return type(wrong)(
        f"{wrong} (Or let the layers bound their own gradients, whatever lies between them: "
        "dplip.nn.bound_gradients(model) converts them; dplip.fix(model) replaces batch normalisation.)"
    )


def _by_layers(model: nn.Module, example: Example) -> Sensitivities:
    """The radii of the layers that a pass uses."""
    enforced = EnforcedModel(model, example)
    return bounds_of(enforced.planned, enforced.radii)


def bounds_of(uses: Mapping[str, Use], radii: frozenset[JointRadius | None]) -> Sensitivities:
    """The bounds of uses: of each parameter the sum of their radii, or the joint radius, of all together as well."""
    found, joint = {name: use.bound * (1 + GRADIENT_SLACK) for name, use in uses.items()}, bound_of_all(radii)
    if joint is None:
        return Sensitivities(found)
    together = joint * (1 + GRADIENT_SLACK)
    return Sensitivities(dict.fromkeys(found, together), together)


def constant_sensitivity(walk: Walk, loss: Loss) -> Sensitivities | None:
    """The sensitivity that holds for all weights and buffers, if every parameter has a finite one; else None.

    It is finite if layers such as ``BallProjection`` and ``GradientBall`` bound the activations and cotangents; no
    operator norm is then computed.
    """
    try:
        return sensitivity_of(walk.without_weights(), loss)
    except (DPLipError, RuntimeError):  # RuntimeError: a rule reads the value of a weight on the meta device
        return None


def sensitivity_of(walk: Walk, loss: Loss, input_norms: Norms | None = None) -> Sensitivities:
    """:func:`sensitivity` of a traced model."""
    require_loss(loss)
    rounded = Rounded(walk)
    output, pullback = rounded(input_norms)
    # The loss sums over the scores of one example, which rounds.
    sent = loss.gradient_norms(output.shape) * (1 + (output.size + 16) * rounded.unit)
    _, bounds = pullback(sent)
    return Sensitivities({k: b * (1 + GRADIENT_SLACK) for k, b in _finite(walk.model, bounds).items()})


def require_loss(loss: object) -> None:
    """Refuse an object that is no :class:`Loss`, which declares the norms of its gradient."""
    if not isinstance(loss, Loss):
        raise ConfigurationError(
            f"loss={type(loss).__name__}: it declares no bound on its gradient. Use one of dplip.losses, or derive "
            "from dplip.losses.Loss."
        )


def parameter_bounds(module: nn.Module, input_shape: tuple[int, ...], input_norms: Norms | None) -> dict[str, float]:
    """Per parameter, the l2 bound of its gradient for an output cotangent of l2 norm 1.

    Args:
        module: a layer or a model.
        input_shape: shape of one example.
        input_norms: norms of one example's input.
    """
    output, pullback = Walk(module, input_shape)(input_norms)
    _, bounds = pullback(Norms(output.shape, l2=1.0))
    return _finite(module, bounds)


def _finite(model: nn.Module, bounds: Mapping[str, Norms]) -> dict[str, float]:
    """The l2 bounds in the model's order; raises unless every trainable parameter has a finite one."""
    found: dict[str, float] = {}
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    for name in reversed(list(bounds)):  # in the order of the forward pass
        if not math.isfinite(largest(bounds[name].l2)):
            layer = name.rpartition(".")[0] or "the model"
            raise UnboundedInputError(
                f"{layer}: the gradient of {name!r} grows with the layer's input, which nothing bounds. "
                "Let the layers bound it themselves: dplip.nn.bound_gradients(model) and model.train(). Or put "
                "dplip.nn.BallProjection(radius) (or Clamp) first in the model, or give input_norms."
            )
    for name in trainable:
        if name not in bounds:
            raise UnboundedOperationError(
                f"{name}: a trainable parameter that the model's output does not use, or that no rule accounts for. "
                "Freeze it with requires_grad_(False), or use it through layers that have rules."
            )
        found[name] = largest(bounds[name].l2)
    return found
