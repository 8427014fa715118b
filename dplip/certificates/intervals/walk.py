"""Interval bounds through a model: boxes that contain its values for all inputs in an l-infinity ball."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dplip.certificates.intervals.box import INTERVALS, REMEDY, UNIT, Box, IntervalRule
from dplip.errors import UnboundedOperationError
from dplip.propagation.probe import Operation
from dplip.propagation.traced_model import TracedModel
from dplip.rules.registry import signature

FIRST = 2.0**-8
"""The first radius that is tried."""

PART = 256
"""Inputs whose boxes are in memory at once."""


class Boxes:
    """The walk of boxes through a traced model.

    Args:
        model: traced in evaluation mode.

    Raises:
        UnboundedOperationError: an operation of the model has no interval rule.
    """

    def __init__(self, model: TracedModel) -> None:
        self._model, self._head = model, model.head()
        for operation in model.calls():
            self._rule(operation)
        origin = torch.zeros((1, *model.input_shape), dtype=torch.float64)
        self(origin, origin)  # so that a rule that refuses does so here

    def __call__(self, lower: Tensor, upper: Tensor) -> Box:
        """The box of the output, for inputs between ``lower`` and ``upper`` (batch, ...)."""
        box = self.values(lower, upper)[self._model.output()]
        if not isinstance(box, Box):
            raise UnboundedOperationError("The model's output does not depend on its input, or is not one tensor.")
        return box

    def values(self, lower: Tensor, upper: Tensor) -> dict[fx.Node, Any]:
        """The box of every node's value, for inputs between ``lower`` and ``upper``."""
        return self._model.run(Box(lower.double(), upper.double()), self._apply)

    def around(self, x: Tensor, radius: Tensor) -> dict[fx.Node, Any]:
        """The box of every node's value, for inputs within each l-infinity radius of x; radii of shape (batch,)."""
        r = radius.reshape(-1, *[1] * (x.ndim - 1)).double()
        return self.values(x.double() - r, x.double() + r)

    def verified(self, x: Tensor, radius: Tensor) -> Tensor:
        """Whether the prediction at x is proved constant within each l-infinity radius, shape (batch,)."""
        return self.settled(self.around(x, radius))

    def settled(self, values: Mapping[fx.Node, Any]) -> Tensor:
        """Whether the prediction is proved the same on the whole box, shape (batch,).

        Proof: every score of every input in the box lies in its interval, so a class whose lower end lies above the
        upper ends of all others is predicted on the whole box; with one score, the sign is fixed. With a last linear
        layer, the differences of its rows bound the differences of scores, which is never looser.
        """
        if self._head is not None and self._head[0].out_features > 1:
            return _gaps(self._head[0], values[self._head[1]])
        box = values[self._model.output()]
        lower, upper = (t.reshape(len(t), -1) for t in (box.lower, box.upper))
        if lower.shape[1] == 1:
            return ((lower > 0) | (upper < 0))[:, 0]
        best = lower.max(1)
        return best.values > upper.scatter(1, best.indices[:, None], -torch.inf).amax(1)

    def _apply(self, operation: Operation, args: Any, kwargs: Any) -> Any:
        subject, rule = self._rule(operation)
        try:
            bound = signature(rule).bind(subject, *args, **kwargs)
        except TypeError:
            operation.refuse("has no interval rule for this call.", REMEDY)
        return rule(*bound.args, **bound.kwargs)

    def _rule(self, operation: Operation) -> tuple[Any, IntervalRule]:
        subject, function = self._model.subject(operation)
        rule = INTERVALS.of(function)
        if rule is None:
            operation.refuse("has no interval rule.", REMEDY)
        return subject, rule


def enlarged(
    verified: Callable[[Tensor, Tensor], Tensor],
    active: Tensor,
    certified: Tensor,
    doublings: int = 12,
    halvings: int = 10,
) -> Tensor:
    """The largest verified radii that bisection finds, at least as large as those given.

    Args:
        verified: (indices of examples, a radius for each) -> whether each is proved.
        active: the examples to try, a mask of shape (batch,).
        certified: the known radii.

    Every returned radius was verified itself or was given, so the result is valid without monotonicity.
    """
    low, high = certified.clone(), torch.full_like(certified, torch.inf)
    trial = (2 * certified).clamp_min(FIRST)
    active = active & low.isfinite()
    for step in range(doublings + halvings):
        rows = active.nonzero()[:, 0]
        proved = torch.zeros_like(active)
        for part in rows.split(PART):
            proved[part] = verified(part, trial[part]).to(low.device)
        low = torch.where(active & proved, trial, low)
        high = torch.where(active & ~proved, trial, high)
        trial = torch.where(high.isfinite(), (low + high) / 2, 2 * low.clamp_min(FIRST))
        if step >= doublings - 1:
            active = active & high.isfinite()  # stops where every radius tried was verified
    return low


def _gaps(head: nn.Linear, box: Box) -> Tensor:
    """Whether one score of a last linear layer exceeds all others on the whole box of the layer's input."""
    w = head.weight.detach().double()
    b = w.new_zeros(len(w)) if head.bias is None else head.bias.detach().double()
    # The candidate is the class predicted at the middle, since a class that wins on the whole box wins there.
    top = F.linear((box.lower + box.upper) / 2, w, b).argmax(1)
    rows = w[top][:, None] - w
    low = torch.einsum("bkn,bn->bk", rows.clamp_min(0), box.lower)
    low = low + torch.einsum("bkn,bn->bk", rows.clamp_max(0), box.upper) + b[top][:, None] - b
    error = (F.linear(box.magnitude, w.abs()) + b.abs()) * (UNIT * (w.shape[1] + 2)) + 1e-37
    low = low - error - error.gather(1, top[:, None])
    return low.scatter(1, top[:, None], torch.inf).amin(1) > 0
