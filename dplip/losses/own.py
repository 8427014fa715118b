"""A loss from a function of one's own, whose gradient is scaled into a bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from dplip.errors import ConfigurationError
from dplip.losses.base import Loss
from dplip.losses.structure import Structure, joint, leaves, tensors
from dplip.norms import Norms


class PerExample(Loss):
    """``function(outputs, targets)``, one value for each example, with each example's gradient scaled to a norm.

    Args:
        function: differentiable; it is given what the model returns, one tensor or tuples and dicts of them, and the
            targets. It treats each example by itself, which is probed before training.
        max_gradient: the l2 bound of one example's gradient with respect to all the outputs as one vector.
        sample_targets: makes targets that the function takes, from outputs, for that probe; None: random numbers of
            the outputs' shape.

    Guarantee: the l2 norm is at most ``max_gradient``, since longer gradients are scaled down to it. That the function
    mixes no examples is seen in its values and gradients on random outputs, and otherwise assumed.
    """

    def __init__(
        self,
        function: Callable[[Any, Any], Tensor],
        max_gradient: float,
        sample_targets: Callable[[Any], Any] | None = None,
        normalize: bool = False,
    ) -> None:
        if not callable(function):
            raise ConfigurationError(f"function={function!r}: give a function of outputs and targets.")
        if max_gradient is None:
            raise ConfigurationError("max_gradient=None: a function of one's own has no other bound. Give one, as 1.0.")
        super().__init__(max_gradient, normalize)
        self.function, self.targets = function, sample_targets

    def per_example(self, outputs: Any, targets: Any) -> Tensor:
        values, examples = self.function(outputs, targets), len(leaves(outputs)[0])
        if not isinstance(values, Tensor) or values.shape != (examples,):
            kind = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"type {type(values).__name__}"
            raise ConfigurationError(
                f"function: it gives a value of {kind} for {examples} examples. Return one number for each, of shape "
                f"({examples},): take sums and means over an example's own entries, and none over the batch."
            )
        return values

    def logit_gradient(self, shape: Any) -> Norms:
        return Norms(joint(shape))

    def classes(self, outputs: Any) -> int | None:
        return None

    def sample_targets(self, outputs: Any) -> Any:
        if self.targets is not None:
            return self.targets(outputs)
        if not isinstance(outputs, Tensor):
            raise ConfigurationError(
                "sample_targets=None: for several outputs, nothing says which targets the function takes. Give a "
                "function of the outputs that makes some."
            )
        return super().sample_targets(outputs)

    def select(self, outputs: Any) -> Structure:
        tensors(outputs, "outputs")
        return outputs

    def select_targets(self, targets: Any) -> Structure:
        tensors(targets, "targets")
        return targets
