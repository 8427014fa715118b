"""Interval bounds through a model: the boxes that its values stay in while the input moves in an l-infinity ball."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dplip.errors import UnboundedOperationError
from dplip.propagate import Walk
from dplip.rules.registry import refuse
from dplip.trace import Step

UNIT = 2.0**-23
"""Twice the largest relative error of one float32 operation."""

FIRST = 2.0**-8
"""The first radius that is tried."""

PART = 256
"""Inputs whose boxes are held at once."""


@dataclass(frozen=True)
class Box:
    """The lower and upper ends of every entry, of shape (batch, ...), in float64."""

    lower: Tensor
    upper: Tensor

    @property
    def magnitude(self) -> Tensor:
        """The largest absolute value of every entry."""
        return torch.maximum(self.lower.abs(), self.upper.abs())

    def widened(self, error: Tensor) -> Box:
        """The box of what the model computes in float32, off by at most ``error`` from the exact value."""
        return Box(self.lower - error, self.upper + error)

    def rounded(self, operations: int = 1) -> Box:
        """The box after a few float32 roundings of its value."""
        return self.widened(self.magnitude * (UNIT * operations) + 1e-37)

    def map(self, function: Callable[[Tensor], Tensor]) -> Box:
        """The box of a function that is not decreasing in any entry."""
        return Box(function(self.lower), function(self.upper))


IntervalRule = Callable[..., Box]

_INTERVALS: dict[Any, IntervalRule] = {}

R = TypeVar("R", bound=IntervalRule)


def interval(*functions: Any) -> Callable[[R], R]:
    """Register how boxes go through functions, tensor methods or module classes (their ``forward``).

    The rule is called with the module (or a :class:`Call`) and the arguments, :class:`Box` in place of each value that
    depends on the input, and returns the box of the result.

    Guarantee: none of its own. A rule claims that whatever the model computes in float32 for a value in the boxes lies
    in the box it returns; and that smaller boxes give smaller ones.
    """

    def register(function: R) -> R:
        for target in functions:
            cls: Any = target
            _INTERVALS[cls.forward if inspect.isclass(target) else target] = function
        return function

    return register


class Boxes:
    """A traced model through which boxes can be walked.

    Args:
        walk: the model, in evaluation mode.

    Raises:
        UnboundedOperationError: an operation of the model has no interval rule.
    """

    def __init__(self, walk: Walk) -> None:
        import dplip.interval_rules  # noqa: F401  (registers the rules)

        self.walk, self._head = walk, walk.head()
        for step in walk.calls():
            self._rule(step)
        origin = torch.zeros((1, *walk.input_shape), dtype=torch.float64)
        self(origin, origin)  # rules refuse what they do not know before anything is certified

    def __call__(self, lower: Tensor, upper: Tensor) -> Box:
        """The box of the output, for inputs between ``lower`` and ``upper`` (batch, ...)."""
        box = self.values(lower, upper)[self.walk.output()]
        if not isinstance(box, Box):
            raise UnboundedOperationError("The model's output does not depend on its input, or is not one tensor.")
        return box

    def values(self, lower: Tensor, upper: Tensor) -> dict[fx.Node, Any]:
        """The box of every value on the way."""
        return self.walk.run(Box(lower.double(), upper.double()), self._apply)

    def around(self, x: Tensor, radius: Tensor) -> dict[fx.Node, Any]:
        """The box of every value for inputs within each l-infinity radius of x, radii of shape (batch,)."""
        r = radius.reshape(-1, *[1] * (x.ndim - 1)).double()
        return self.values(x.double() - r, x.double() + r)

    def verified(self, x: Tensor, radius: Tensor) -> Tensor:
        """Whether the prediction at x provably stays as it is within each l-infinity radius, shape (batch,)."""
        return self.settled(self.around(x, radius))

    def settled(self, values: Mapping[fx.Node, Any]) -> Tensor:
        """Whether the prediction is the same on the whole box, shape (batch,).

        Proof: every score of every input in the box lies in its interval, so a class whose lower end lies above the
        upper ends of all others is predicted on the whole box; with one score, its sign is fixed. Behind a last linear
        layer the differences of scores are bounded through the differences of its rows instead, which is never looser.
        """
        if self._head is not None and self._head[0].out_features > 1:
            return _gaps(self._head[0], values[self._head[1]])
        box = values[self.walk.output()]
        lower, upper = (t.reshape(len(t), -1) for t in (box.lower, box.upper))
        if lower.shape[1] == 1:
            return ((lower > 0) | (upper < 0))[:, 0]
        best = lower.max(1)
        return best.values > upper.scatter(1, best.indices[:, None], -torch.inf).amax(1)

    def _apply(self, step: Step, args: Any, kwargs: Any) -> Any:
        subject, rule = self._rule(step)
        try:
            bound = inspect.signature(rule).bind(subject, *args, **kwargs)
        except TypeError:
            refuse(step.path, self.walk.describe(step), "has no interval rule for this call.", REMEDY)
        return rule(*bound.args, **bound.kwargs)

    def _rule(self, step: Step) -> tuple[Any, IntervalRule]:
        subject, function = self.walk.subject(step)
        rule = _INTERVALS.get(function)
        if rule is None:
            refuse(step.path, self.walk.describe(step), "has no interval rule.", REMEDY)
        return subject, rule


REMEDY = "Its certificates rest on the margin alone."


def linear_box(weight: Tensor, bias: Tensor | None, x: Box, apply: Callable[[Tensor, Tensor], Tensor]) -> Box:
    """The box of a linear map, ``apply(input, weight)`` without the bias: the weight's signs choose the ends.

    The model sums in float32: of n terms the error is at most ``(n + 1) 2^-24 sum |w| |x|`` whatever the order, and
    twice that is allowed for.
    """
    w = weight.detach().double()
    positive, negative = w.clamp_min(0), w.clamp_max(0)
    lower = apply(x.lower, positive) + apply(x.upper, negative)
    upper = apply(x.upper, positive) + apply(x.lower, negative)
    error = apply(x.magnitude, w.abs())
    if bias is not None:
        b = bias.detach().double()
        b = b.reshape(-1, *[1] * (lower.ndim - 2)) if apply is not F.linear else b
        lower, upper, error = lower + b, upper + b, error + b.abs()
    return Box(lower, upper).widened(error * (UNIT * (weight[0].numel() + 2)) + 1e-37)


def enlarged(
    verified: Callable[[Tensor, Tensor], Tensor],
    active: Tensor,
    certified: Tensor,
    doublings: int = 12,
    halvings: int = 10,
) -> Tensor:
    """Radii at least as large as those given: the largest that are found to be verified, by bisection.

    Args:
        verified: (numbers of examples, a radius for each) -> whether each is proved; smaller radii are no harder.
        active: which examples to try, shape (batch,).
        certified: the radii that are known.

    Every radius that is returned has been verified itself (or was given), so the search needs no monotonicity.
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
            active = active & high.isfinite()  # verified however far it was tried
    return low


def _gaps(head: nn.Linear, box: Box) -> Tensor:
    """Whether one score of a last linear layer exceeds all others on the whole box of its input."""
    w = head.weight.detach().double()
    b = w.new_zeros(len(w)) if head.bias is None else head.bias.detach().double()
    # The candidate is the class predicted at the middle: if any class wins on the whole box, it wins there.
    top = F.linear((box.lower + box.upper) / 2, w, b).argmax(1)
    rows = w[top][:, None] - w
    low = torch.einsum("bkn,bn->bk", rows.clamp_min(0), box.lower)
    low = low + torch.einsum("bkn,bn->bk", rows.clamp_max(0), box.upper) + b[top][:, None] - b
    error = (F.linear(box.magnitude, w.abs()) + b.abs()) * (UNIT * (w.shape[1] + 2)) + 1e-37
    low = low - error - error.gather(1, top[:, None])
    return low.scatter(1, top[:, None], torch.inf).amin(1) > 0
