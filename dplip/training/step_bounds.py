"""The sensitivities of a step: how far two neighbouring sums of gradients may lie apart, rounding included."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import nn

from dplip.accounting import NEIGHBORING
from dplip.losses import Loss
from dplip.nn.bounded.slack import adaptive_layers
from dplip.nn.sums import added, apart, lost, most_examples
from dplip.norms import NormCache
from dplip.runtime.example import Example
from dplip.runtime.modules import parameters_of
from dplip.sensitivities import Sensitivities
from dplip.sensitivities.propagated import require_loss
from dplip.training.batches import Batches
from dplip.training.gradient_monitor import PASSES
from dplip.training.passes import Seen
from dplip.training.sources import source_of

NOTED_ROUNDING = 0.2
"""A warning is given if the rounding of sums over a batch adds more noise than this share."""

GROWTH = 10.0
"""A warning is given if the sensitivity has grown by this factor since the start."""


class Rounding(NamedTuple):
    """How far two sums may round apart: in units of what one example adds, and beside that."""

    relative: float
    absolute: float


class StepBounds:
    """The sensitivities of a private step for the present weights, computed again where something has changed.

    Args:
        model, loss, example, batches, neighboring, half_precision: see :class:`dplip.DPLipOptimizer`.
        drift: relative looseness allowed to operator norms that are carried over steps.
        processes: the number of processes that a batch is dealt to.

    Attributes:
        source: where the bound of one example comes from.
        cache: the norms of the model's weights.
        share: the most examples of a batch in one process, but for a negligible chance.
        planned: the total sensitivity at the first weights.

    Raises:
        UnboundedOperationError, UnboundedInputError: the model has no bound.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        example: Example,
        batches: Batches,
        neighboring: str,
        half_precision: bool,
        drift: float,
        processes: int = 1,
    ) -> None:
        self._model, self._batches, self._factor = model, batches, NEIGHBORING[neighboring]
        require_loss(loss)
        self.cache = NormCache(drift)
        self.source = source_of(model, loss, example, half_precision, self.cache)
        self._processes, self.share = processes, most_examples(batches.expected_batch_size / processes)
        self.planned = self().total
        self._warned = False

    @property
    def _slack(self) -> bool:
        """Whether some layer has a slack coordinate."""
        return any(True for _ in adaptive_layers(self._model))

    @property
    def _most(self) -> int:
        """The most examples in a batch."""
        return self._processes * self.share

    @property
    def most_in_part(self) -> int:
        """The most examples in a physical batch, but for a negligible chance."""
        return most_examples(getattr(self._batches, "expected_part_size", self._batches.expected_batch_size))

    def __call__(self, seen: Seen | None = None) -> Sensitivities:
        """The sensitivities of what the monitor saw of a batch; None: of the present model."""
        bounds, roundings, found = self.source(seen), self._roundings(), {}
        for name, bound in bounds.items():
            relative, absolute = roundings[name]
            found[name] = self._factor * (bound * (1 + relative) + absolute) if bound else 0.0
        if bounds.together is None:
            return Sensitivities(found)
        # The proof of dplip.nn.sums.apart is along any direction, of all parameters' entries as well: one example's
        # terms are at most the joint bound there, and no parameter's weights of the terms are more than the largest.
        relative, absolute = max(r for r, _ in roundings.values()), sum(roundings[n].absolute for n in bounds)
        return Sensitivities(found, self._factor * (bounds.together * (1 + relative) + absolute))

    def _roundings(self) -> dict[str, Rounding]:
        """Per parameter, how far two neighbouring sums may round apart.

        A physical batch is summed in the parameter's type; these sums are added in float64 and rounded once. The sums
        of W processes are added in float64 too, in any order, by W - 1 additions each off by at most u times all
        magnitudes, and rounded once more. Neighbours differ in one process's share of one part. Noise comes after the
        last rounding, so what follows it changes nothing.
        """
        part, parameters = self.most_in_part, parameters_of(self._model)
        of_processes, last = added(self._most, self._processes - 1, torch.float64), min(self._processes, 2)
        of_slack = apart(part, 1, False, torch.float64) + added(part, PASSES, torch.float64) if self._slack else 0.0
        found = {}
        for name, how in self.source.summations.items():
            p = parameters[name]
            relative = apart(part, how.terms, how.blocked, torch.float64 if how.exact else p.dtype) + of_slack
            relative += added(part, how.uses * PASSES, p.dtype)
            relative += added(self._most, last, p.dtype) + of_processes * (1 + self._slack)
            found[name] = Rounding(relative, lost(self._most, how.terms * how.uses, p.numel(), p.dtype))
        return found

    def warn_of_rounding(self) -> None:
        """Warn if the rounding of sums makes the noise much larger."""
        name, (most, _) = max(self._roundings().items(), key=lambda item: item[1])
        if most > NOTED_ROUNDING:
            warnings.warn(
                f"neighbouring sums of the gradient of {name!r} may round apart by {most:.0%} of what one example "
                "adds, and the noise is larger by as much. Give a smaller max_physical_batch_size (512, say), which "
                "changes neither the batch nor what is spent.",
                stacklevel=4,  # beyond the optimizer, whose construction all processes agree about
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
