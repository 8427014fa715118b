"""Interval bounds through a model: the boxes that its values stay in while the input moves in an l-infinity ball."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dplip.errors import UnboundedOperationError
from dplip.propagate import Walk
from dplip.rules.registry import Call, module_rule, refuse
from dplip.trace import attribute, describe, flat, target_of

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

        self._walk = walk
        for node, step in walk._steps.items():
            if step.shape is not None and node.op in ("call_module", "call_function", "call_method"):
                self._rule(node)
        self._end = walk._output()
        while node_is(self._end, walk, nn.Identity):
            self._end = self._end.all_input_nodes[0]
        last = walk._modules.get(str(self._end.target))
        self._head = None
        if (
            isinstance(last, nn.Linear)
            and node_is(self._end, walk, nn.Linear)
            and len(walk._steps[self._end].shape) == 1
        ):
            self._head = last
            self._end = self._end.all_input_nodes[0]
        origin = torch.zeros((1, *walk.input_shape), dtype=torch.float64)
        self._run(origin, origin)  # rules refuse what they do not know before anything is certified

    def verified(self, x: Tensor, radius: Tensor) -> Tensor:
        """Whether the prediction at x provably stays as it is within each l-infinity radius, shape (batch,).

        Proof: every score of every input in the box lies in its interval, so a class whose lower end lies above the
        upper ends of all others is predicted on the whole box; with one score, its sign is fixed. Behind a last linear
        layer the differences of scores are bounded through the differences of its rows instead, which is never looser.
        """
        r = radius.reshape(-1, *[1] * (x.ndim - 1)).double()
        box = self._run(x.double() - r, x.double() + r)
        if self._head is not None and self._head.out_features > 1:
            return _gaps(self._head, box)
        if self._head is not None:
            box = linear_box(self._head.weight, self._head.bias, box, F.linear)
        lower, upper = box.lower.reshape(len(x), -1), box.upper.reshape(len(x), -1)
        if lower.shape[1] == 1:
            return ((lower > 0) | (upper < 0))[:, 0]
        best = lower.max(1)
        return best.values > upper.scatter(1, best.indices[:, None], -torch.inf).amax(1)

    def __call__(self, lower: Tensor, upper: Tensor) -> Box:
        """The box of the output, for inputs between ``lower`` and ``upper`` (batch, ...)."""
        box = self._run(lower, upper)
        return box if self._head is None else linear_box(self._head.weight, self._head.bias, box, F.linear)

    def _run(self, lower: Tensor, upper: Tensor) -> Box:
        """The box of what the last linear layer takes, or of the output where there is none."""
        walk = self._walk
        values: dict[fx.Node, Any] = {}
        for node in walk._steps:
            if node.op == "placeholder":
                values[node] = Box(lower.double(), upper.double())
            elif node.op == "get_attr":
                values[node] = attribute(walk._root, str(node.target))
            elif node in walk._values:
                values[node] = walk._values[node]
            else:
                args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
                values[node] = self._apply(node, args, kwargs)
            if node is self._end:
                break
        if not isinstance(values[self._end], Box):
            raise UnboundedOperationError("The model's output does not depend on its input, or is not one tensor.")
        return values[self._end]

    def _apply(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        step = self._walk._steps[node]
        if not any(isinstance(a, Box) for a in flat((args, kwargs))):
            return self._walk._fold(step, args, kwargs)
        subject, rule = self._rule(node)
        try:
            bound = inspect.signature(rule).bind(subject, *args, **kwargs)
        except TypeError:
            refuse(step.path, describe(node, self._walk._modules), "has no interval rule for this call.", REMEDY)
        return rule(*bound.args, **bound.kwargs)

    def _rule(self, node: fx.Node) -> tuple[Any, IntervalRule]:
        walk = self._walk
        if node.op == "call_module":
            subject: Any = walk._modules[str(node.target)]
            trusted = module_rule(subject) is not None
            function = type(subject).forward if trusted else None
        else:
            function = target_of(node)
            subject = Call(function, walk._steps[node].shape, walk._steps[node].path)
        rule = _INTERVALS.get(function)
        if rule is None:
            refuse(walk._steps[node].path, describe(node, walk._modules), "has no interval rule.", REMEDY)
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


def enlarged(boxes: Boxes, x: Tensor, certified: Tensor, doublings: int = 12, halvings: int = 10) -> Tensor:
    """Radii at least as large as those given: the largest that intervals are found to verify, by bisection.

    Every radius that is returned has been verified itself (or was given), so the search needs no monotonicity.
    """
    if len(x) > PART:
        parts = zip(x.split(PART), certified.split(PART), strict=True)
        return torch.cat([enlarged(boxes, *part, doublings, halvings) for part in parts])
    low, high = certified.clone(), torch.full_like(certified, torch.inf)
    trial = (2 * certified).clamp_min(FIRST)
    active = low.isfinite() & x.flatten(1).isfinite().all(1).to(low.device)
    for step in range(doublings + halvings):
        rows = active.nonzero()[:, 0]
        if not len(rows):
            break
        proved = torch.zeros_like(active)
        proved[rows] = boxes.verified(x[rows.to(x.device)], trial[rows].to(x.device)).to(low.device)
        low = torch.where(active & proved, trial, low)
        high = torch.where(active & ~proved, trial, high)
        trial = torch.where(high.isfinite(), (low + high) / 2, 2 * low.clamp_min(FIRST))
        if step >= doublings - 1:
            active = active & high.isfinite()  # verified however far it was tried
    return low


def node_is(node: fx.Node, walk: Walk, layer: type[nn.Module]) -> bool:
    """Whether a node calls a layer of that kind, with that kind's own forward."""
    if node.op != "call_module":
        return False
    module = walk._modules[str(node.target)]
    return isinstance(module, layer) and type(module).forward is layer.forward


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
