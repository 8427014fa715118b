"""Bounds on the rounding errors of a model, for its certificates and for its sensitivities."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from dplip.nn.linf.linf_distance import Relaxed
from dplip.norms import Bound, Norms, OperatorNorms, largest, times
from dplip.propagation import Walk
from dplip.propagation.graph import Root, flat
from dplip.propagation.probe import Operation
from dplip.propagation.walk import ModelPullback
from dplip.rounding.registry import EXACT, HUGE, ROUNDINGS, TINY, Roundings, unit_of
from dplip.rules import RULES
from dplip.rules.registry import signature


def _roundings(walk: Walk, operation: Operation, args: Any, kwargs: Any) -> Roundings | None:
    subject, function = walk.subject(operation)
    rule = ROUNDINGS.of(function)
    return None if rule is None else rule(subject, *args, **kwargs)


def _jacobians(pullback: Callable[[Norms], Any], shape: tuple[int, ...]) -> list[OperatorNorms]:
    """The norms of the Jacobians of a call, one for each of its inputs, from its pullback of unit cotangents."""
    one, two, inf = (pullback(Norms(shape, **{p: 1.0}))[1] for p in ("l1", "l2", "linf"))
    return [
        OperatorNorms(*(largest(n) for n in (a.l1, a.l2, a.linf, b.l2, b.linf, c.linf))).T
        for a, b, c in zip(one, two, inf, strict=True)
    ]


def _magnitude(jacobian: OperatorNorms, kind: Roundings, size: int) -> OperatorNorms:
    """The norms of |J|: those of J, except that the l2 norm is at most sqrt(rank) times larger (Frobenius)."""
    return jacobian if kind.diagonal else replace(jacobian, two_two=float(times(math.sqrt(size), jacobian.two_two)))


def by_pair(bound: Bound, classes: int) -> Tensor:
    """A bound for each pair of classes, from K^2 bounds or one for all pairs; float64 (classes, classes)."""
    return torch.as_tensor(bound, dtype=torch.float64).flatten().expand(classes**2).reshape(classes, classes)


# ------------------------------------------------------------------------------------------------ certificates


@dataclass(frozen=True)
class _Called:
    operation: Operation
    sources: list[fx.Node]
    kind: Callable[[Mapping[fx.Node, Norms]], Roundings]
    exact: bool
    jacobians: list[OperatorNorms]
    magnitudes: list[OperatorNorms]
    zero: Norms


class Rounding:
    """Bounds on the rounding errors of a traced model's scores, at given inputs and around them.

    Args:
        walk: the model, in evaluation mode.
        seeds: node -> the cotangent norms there of the differences of scores (K^2 entries, or one).
        classes: K.

    Raises:
        UnboundedOperationError: an operation has no rounding rule.

    Proof: replace the floating-point operations of the model by exact ones, from the last to the first. Each
    replacement changes z_y - z_j by at most the operation's own rounding, at its floating-point input, times the bound
    of the cotangent of z_y - z_j at its output, which holds for all values. The floating-point values differ from the
    exact ones at x by at most the input's move, taken forward by the Jacobians' norms, plus each operation's rounding.
    """

    def __init__(self, walk: Walk, seeds: Mapping[fx.Node, Norms], classes: int) -> None:
        self.walk, self.unit, self._classes = walk, unit_of(walk), classes
        self._values, pullbacks = walk.forward()
        self._exact = self._copied()
        self._calls = [self._called(o, pullbacks[o.node]) for o in walk.calls() if o.node in pullbacks]
        end = walk.output()
        # The seeds skip a last linear layer, so the scores are seeded too: e_y - e_j has l1 norm 2 for every pair.
        whole = Norms(walk.shape(end), 2.0, math.sqrt(2), 1.0) if classes > 1 else Norms(walk.shape(end), 1.0)
        cotangents = {**walk.cotangents({end: whole}), **(walk.cotangents(seeds) if classes > 1 else {})}
        self._slopes: dict[fx.Node, list[Tensor]] = {}
        for node, v in cotangents.items():
            if isinstance(v, Norms):
                self._slopes[node] = [by_pair(bound, classes) for bound in (v.l1, v.l2, v.linf)]

    def _called(self, operation: Operation, pullback: Callable[[Norms], Any]) -> _Called:
        walk, node, values, shape = self.walk, operation.node, self._values, operation.shape
        names = [n for n in flat((node.args, node.kwargs)) if isinstance(n, fx.Node)]

        def kind(sizes: Mapping[fx.Node, Norms]) -> Roundings:
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: sizes.get(n, values[n]))
            found = _roundings(walk, operation, args, kwargs)
            if found is None:
                operation.refuse(
                    "is not known to round in any way, so it has no certificate.",
                    "Use another operation, or say how it rounds: @dplip.rounding.rounding(...).",
                )
            return found

        found = kind({})
        if isinstance(shape[0] if shape else None, tuple) or any(isinstance(values[n], tuple) for n in names):
            return _Called(operation, names[:1], kind, True, [], [], Norms(()))
        zero = Norms.zero(shape)
        sources, jacobians = pullback(zero)[0], _jacobians(pullback, shape)
        sizes = [min(math.prod(shape), values[n].size) for n in sources]
        magnitudes = [_magnitude(j, found, size) for j, size in zip(jacobians, sizes, strict=True)]
        if found.terms:
            nil = {n: Norms.zero(values[n].shape) for n in sources}
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: nil.get(n, values[n]))
            zero = walk.apply(operation, args, kwargs)[0]
        return _Called(operation, sources, kind, found.none, jacobians, magnitudes, zero)

    def _copied(self) -> nn.Module | None:
        """The model in float64; None if it already is, or if it has distances (the compiled loops are float32)."""
        if self.unit < 2.0**-24 or any(isinstance(m, Relaxed) for m in self.walk.model.modules()):
            return None
        return Root(copy.deepcopy(self.walk.model)).double()

    def at(self, x: Tensor) -> tuple[Tensor, dict[fx.Node, Norms]]:
        """The scores of inputs, computed in float64, (batch, ...), and the norms of each example's values at nodes."""
        kept = {n for c in self._calls if not c.exact for n in (c.operation.node, *c.sources)}
        try:
            values = _Exact(self.walk, self._exact, kept).values(x)
        except RuntimeError:  # the forward creates tensors of a fixed type
            if self._exact is None:
                raise
            self._exact = None
            values = _Exact(self.walk, None, kept).values(x)
        return values[self.walk.output()], {n: _norms_of(v) for n, v in values.items() if n in kept}

    @property
    def share(self) -> float:
        """The factor of the error: 1 for x', plus 1 for x (2^-53 / unit if the scores at x are in float64)."""
        return 2.0 if self._exact is None else 1 + 2.0**-53 / self.unit

    def errors(self, sizes: Mapping[fx.Node, Norms], moved: Norms) -> dict[fx.Node, Norms]:
        """Each operation's own rounding, for inputs that differ from those of ``sizes`` by at most ``moved``."""
        apart: dict[fx.Node, Any] = {self.walk.start(): moved}
        found: dict[fx.Node, Norms] = {}
        for call in self._calls:
            node, shape = call.operation.node, call.operation.shape
            if not call.jacobians:  # the call splits a value or selects a part
                apart[node] = _parts(node, shape, apart[call.sources[0]])
                continue
            change = Norms.zero(shape)
            for n, jacobian in zip(call.sources, call.jacobians, strict=True):
                change = change + jacobian(apart[n], shape)
            apart[node] = change
            if call.exact:
                continue
            inputs = {n: sizes[n] + apart[n] for n in call.sources}
            kind = call.kind(inputs)
            read = Norms.zero(shape)
            for n, size in zip(call.sources, call.magnitudes, strict=True):
                read = read + size(inputs[n], shape)
            error = Norms(shape, linf=TINY * (1 + kind.terms) + kind.apart)
            if kind.terms:
                error = error + (read + call.zero) * (kind.terms * self.unit)
            error = error + (sizes[node] + change) * (kind.output * self.unit)
            if kind.more is not None:
                error = error + kind.more * self.unit
            found[node] = _finite(error, read)
            apart[node] = change + found[node]
        return found

    def of_scores(self, errors: Mapping[fx.Node, Norms], top: Tensor) -> Tensor:
        """A bound on the error of z_y - z_j from the roundings, for the class y in ``top``; shape (batch, K)."""
        total = torch.zeros(len(top), self._classes, dtype=torch.float64)
        for node, e in errors.items():
            if node in self._slopes:
                sizes = [torch.as_tensor(n, dtype=torch.float64).expand(len(top))[:, None] for n in _dual(e)]
                products = [times(s[top], n) for s, n in zip(self._slopes[node], sizes, strict=True)]
                total = total + torch.stack([torch.as_tensor(p) for p in products]).amin(0)
        return total * self.share


def _dual(e: Norms) -> tuple[Bound, Bound, Bound]:
    return e.linf, e.l2, e.l1


def _finite(error: Norms, read: Norms) -> Norms:
    """The error where no product or sum can overflow, and infinity elsewhere."""
    if isinstance(read.linf, Tensor):
        safe = torch.where(read.linf < HUGE, 0.0, math.inf)
        return error + Norms(error.shape, linf=safe)
    return error if read.linf < HUGE else Norms(error.shape)


def _parts(node: fx.Node, shape: Any, value: Any) -> Any:
    if isinstance(value, tuple):
        return value[cast(int, node.args[1])]
    return tuple(value.reshape(s) for s in shape)


def _norms_of(value: Tensor) -> Norms:
    """Upper bounds on the norms of each example's value, by float32 sums of n terms with slack for their rounding."""
    rows = value.detach().float().reshape(len(value), -1)
    n = rows.shape[1]
    slack, lost = 1 + (n + 8) * 2.0**-23, math.sqrt(n) * 2.0**-62
    known = [torch.linalg.vector_norm(rows, p, 1).double().cpu() * slack + lost for p in (1, 2, math.inf)]
    return Norms(tuple(value.shape[1:]), *(torch.nan_to_num(k, nan=math.inf, posinf=math.inf) for k in known))


def rows_of(sizes: Mapping[fx.Node, Norms], rows: Tensor) -> dict[fx.Node, Norms]:
    """The norms of some examples."""
    return {n: Norms(s.shape, *(cast(Tensor, b)[rows] for b in (s.l1, s.l2, s.linf))) for n, s in sizes.items()}


class _Exact(fx.Interpreter):
    """An interpreter of a traced model in float64, with the model's constants as they are in its own type."""

    def __init__(self, walk: Walk, double: nn.Module | None, kept: set[fx.Node]) -> None:
        super().__init__(walk.graph_module)
        self._double = None if double is None else dict(double.named_modules(remove_duplicate=False))
        self._fed = {operation.node for operation in walk.calls()}
        self._kept = {*kept, walk.output()}
        self._seen: dict[fx.Node, Tensor] = {}

    def values(self, x: Tensor) -> dict[fx.Node, Tensor]:
        self.run(x if self._double is None else x.double())
        return self._seen

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self._kept:
            self._seen[n] = value
        return value

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> Any:
        found = super().fetch_args_kwargs_from_env(n)
        return found if self._double is None or n not in self._fed else fx.node.map_aggregate(found, _double)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        if self._double is None:
            return super().call_module(target, args, kwargs)
        return self._double[str(target)](*args, **kwargs)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        exact = self._double is not None and target in ("float", "double")
        return args[0] if exact else super().call_method(target, args, kwargs)


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


# ------------------------------------------------------------------------------------------------ sensitivities


class Rounded:
    """The walk of norms that hold for the floating-point values and cotangents.

    An operation without a rounding rule (a user's own rule) is assumed to keep within its norms.
    """

    def __init__(self, walk: Walk) -> None:
        self._walk, self.unit = walk, unit_of(walk)

    def __call__(self, input_norms: Norms | None = None) -> tuple[Norms, ModelPullback]:
        return self._walk(input_norms, self._apply)

    def _apply(self, operation: Operation, args: Any, kwargs: Any) -> tuple[Any, Any]:
        exact, inner = self._walk.apply(operation, args, kwargs)
        kind, unit = _roundings(self._walk, operation, args, kwargs) or EXACT, self.unit
        if not isinstance(exact, Norms):  # the call splits a value
            return exact, inner
        output, magnitudes = exact, self._magnitudes(operation, args, kwargs, kind, exact, inner)
        if not kind.none and not kind.held:
            read: Bound = 0.0  # |f(0)| is at most |f(x)| + |J| |x|
            for size, n in magnitudes if kind.terms else ():
                read = read + times(size.two_two, n.l2) * (2 * kind.terms * unit)
            lost = math.sqrt(exact.size) * (TINY * (1 + kind.terms) + kind.apart)
            output = exact * (1 + times(kind.output, unit) + kind.terms * unit) + Norms(exact.shape, l2=read + lost)
            output = output if kind.more is None else output + kind.more * unit

        def pullback(cotangent: Any) -> tuple[Any, Any, Any]:
            sources, inputs, named = inner(cotangent)
            if kind.back:
                inputs = [
                    v + size.T(cotangent, v.shape) * (kind.back * unit)
                    for v, (size, _) in zip(inputs, magnitudes, strict=True)
                ]
            if named and not kind.summed:
                # The gradient of a parameter's entry sums one term for each entry of the output that uses it.
                named = {k: n * (1 + (2 * exact.size / _rows_of(n) + 16) * unit) for k, n in named.items()}
            return sources, inputs, named

        return output, pullback

    def _magnitudes(
        self, operation: Operation, args: Any, kwargs: Any, kind: Roundings, output: Norms, inner: Any
    ) -> list[tuple[OperatorNorms, Norms]]:
        """The norms of |J| in each input (only those into l2, unless J is one-hot), and the norms of the input."""
        if not kind.back and (kind.held or not kind.terms):
            return []
        subject, function = self._walk.subject(operation)
        bound = signature(RULES.of(function)).bind(subject, *args, **kwargs)
        values = [a for a in flat(bound.arguments) if isinstance(a, Norms)]  # in the order of the rule's cotangents
        if kind.one_hot:
            jacobians = _jacobians(inner, output.shape)
        else:
            back = inner(Norms(output.shape, l2=1.0))[1]
            jacobians = [OperatorNorms(two_two=largest(n.l2), one_two=largest(n.linf)) for n in back]
        return [(_magnitude(j, kind, min(output.size, n.size)), n) for j, n in zip(jacobians, values, strict=True)]


def _rows_of(parameter: Norms) -> int:
    return max(1, parameter.shape[0]) if parameter.shape else 1
