"""How far floating point takes a model from exact arithmetic: the roundings of each operation, and those of a walk."""

from __future__ import annotations

import copy
import inspect
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dplip import nn as dn
from dplip.nn.linf_distance import Relaxed
from dplip.nn.scattering import BORDER, filters
from dplip.norms import Bound, Norms, OperatorNorms, largest, times
from dplip.operators import matrix
from dplip.propagate import Walk
from dplip.rules.registry import refuse, rule_of
from dplip.trace import Step, flat, target_of

T = torch.Tensor

HUGE = 1e37
"""Beyond it products and sums may overflow, and nothing is known."""

TINY = 2.0**-120
"""More than what products and quotients lose below the smallest normal number, in each entry."""


@dataclass(frozen=True)
class Roundings:
    """How far one call f may be from the exact f of the same floating-point input, whatever the order of its sums.

    Entry by entry, in units of one rounding (2^-24 in float32):
    ``terms (|J| |x| + |f(0)|) + output |f(x)| + more``, J being any Jacobian of f; and for a cotangent v that goes
    back, ``back |J|^T |v|``.

    Attributes:
        apart: an error that is no rounding, in each entry, such as a jump of f.
        diagonal: J is diagonal (or a permutation), so that |J| has the norms of J.
        held: what the rule says of the output holds for the rounded output.
        summed: the rule counts the roundings of its parameters' gradients.
        one_hot: J has few entries in a row, so that norms in l1 say more than in l2.
    """

    terms: float = 0.0
    output: Bound = 0.0
    more: Norms | None = None
    back: float = 0.0
    apart: float = 0.0
    diagonal: bool = False
    held: bool = False
    summed: bool = False
    one_hot: bool = False

    @property
    def none(self) -> bool:
        return not isinstance(self.output, Tensor) and not (self.terms or self.output or self.more or self.apart)


EXACT = Roundings()

RoundingRule = Callable[..., Roundings]

_ROUNDINGS: dict[Any, RoundingRule] = {}

R = TypeVar("R", bound=RoundingRule)


def rounding(*functions: Any) -> Callable[[R], R]:
    """Register how functions, tensor methods or module classes (their ``forward``) round.

    The rule is called with the module (or a :class:`Call`) and the arguments, :class:`Norms` of the floating-point
    values in place of each value that depends on the input, and returns :class:`Roundings`.

    Guarantee: none of its own; what has no such rule has no certificate.
    """

    def register(function: R) -> R:
        for target in functions:
            cls: Any = target
            _ROUNDINGS[cls.forward if inspect.isclass(target) else target] = function
        return function

    return register


def summing(n: float, back: float, summed: bool = False) -> Roundings:
    """Sums of n products, in any order, and of so many on the way back.

    Proof: a product is off by one unit of itself. Each of n - 1 additions is off by a unit of what it gives, and any
    partial sum lies between that of the negative and that of the positive terms, so within half of ``sum |terms| +
    |sum|``, but for the errors before it, which n units of that sum up to (1 / (1 - n unit)).
    """
    half = n / 2 / (1 - min(n * 2.0**-24, 0.5)) if n < 2.0**23 else math.inf
    back = back / (1 - back * 2.0**-24) if back < 2.0**23 else math.inf
    return Roundings(terms=half + 2, output=half, back=back, summed=summed)


def unit_of(walk: Walk) -> float:
    """The largest relative error of one operation of a model: 2^-53 where all of it is in float64, else 2^-24."""
    tensors = [t for t in (*walk.model.parameters(), *walk.model.buffers()) if t.is_floating_point()]
    retyped = any(target_of(step.node) is T.float for step in walk.calls() if step.node.op != "call_module")
    return 2.0**-53 if tensors and all(t.dtype == torch.float64 for t in tensors) and not retyped else 2.0**-24


def _roundings(walk: Walk, step: Step, args: Any, kwargs: Any) -> Roundings | None:
    subject, function = walk.subject(step)
    rule = _ROUNDINGS.get(function)
    return None if rule is None else rule(subject, *args, **kwargs)


def _jacobians(back: Callable[[Norms], list[Norms]], shape: tuple[int, ...]) -> list[OperatorNorms]:
    """The norms of the Jacobians of a call, one for each of its inputs, read off its pullback of unit cotangents."""
    one, two, inf = (back(Norms(shape, **{p: 1.0})) for p in ("l1", "l2", "linf"))
    return [
        OperatorNorms(*(largest(n) for n in (a.l1, a.l2, a.linf, b.l2, b.linf, c.linf))).T
        for a, b, c in zip(one, two, inf, strict=True)
    ]


def _magnitude(jacobian: OperatorNorms, kind: Roundings, size: int) -> OperatorNorms:
    """The norms of |J|: those of J but for the one in l2, which is at most sqrt(rank) times larger (Frobenius)."""
    return jacobian if kind.diagonal else replace(jacobian, two_two=float(times(math.sqrt(size), jacobian.two_two)))


def _listed(inputs: Any) -> list[Norms]:
    return [inputs] if isinstance(inputs, Norms) else list(inputs)


# ------------------------------------------------------------------------------------------------ certificates


@dataclass(frozen=True)
class _Called:
    step: Step
    sources: list[fx.Node]
    kind: Callable[[Mapping[fx.Node, Norms]], Roundings]
    exact: bool
    jacobians: list[OperatorNorms]
    magnitudes: list[OperatorNorms]
    zero: Norms


class Rounding:
    """The rounding errors of a traced model's scores, at given inputs and around them.

    Args:
        walk: the model, in evaluation mode.
        seeds: where the cotangents of the differences of scores are known, with their norms (K^2 entries, or one).
        classes: K.

    Raises:
        UnboundedOperationError: an operation is not known to round in any way.

    Proof: replace the floating-point operations of the model by exact ones, from the last to the first. Each
    replacement changes z_y - z_j by at most the size of that operation's own rounding, at the floating-point value that
    it is given, times the bound of the cotangent of z_y - z_j there, which holds for all values. Those values lie
    within T of the exact ones at x: T is how far the input moves, taken forward by the norms of the Jacobians, with
    each operation's own rounding added.
    """

    def __init__(self, walk: Walk, seeds: Mapping[fx.Node, Norms], classes: int) -> None:
        self.walk, self.unit, self._classes = walk, unit_of(walk), classes
        self._values, pullbacks = walk._forward(None)
        self._exact = self._copied()
        self._calls = [self._called(step, pullbacks) for step in walk.calls() if step.node in pullbacks]
        end = walk.output()
        # Scores behind a last linear layer, and that layer itself: e_y - e_j has l1 norm 2, whatever the pair.
        whole = Norms(walk.shape(end), 2.0, math.sqrt(2), 1.0) if classes > 1 else Norms(walk.shape(end), 1.0)
        cotangents = {**walk.cotangents({end: whole}), **(walk.cotangents(seeds) if classes > 1 else {})}
        self._slopes: dict[fx.Node, list[Tensor]] = {}
        for node, v in cotangents.items():
            if isinstance(v, Norms):
                table = [torch.as_tensor(n, dtype=torch.float64).flatten() for n in (v.l1, v.l2, v.linf)]
                self._slopes[node] = [t.expand(classes**2).reshape(classes, classes) for t in table]

    def _called(self, step: Step, pullbacks: Mapping[fx.Node, Any]) -> _Called:
        walk, node, values = self.walk, step.node, self._values
        names = [n for n in flat((node.args, node.kwargs)) if isinstance(n, fx.Node)]

        def kind(sizes: Mapping[fx.Node, Norms]) -> Roundings:
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: sizes.get(n, values[n]))
            found = _roundings(walk, step, args, kwargs)
            if found is None:
                refuse(
                    step.path,
                    walk.describe(step),
                    "is not known to round in any way, so it has no certificate.",
                    "Use another operation, or say how it rounds: @dplip.rounding.rounding(...).",
                )
            return found

        found = kind({})
        if isinstance(step.shape[0] if step.shape else None, tuple) or any(isinstance(values[n], tuple) for n in names):
            return _Called(step, names[:1], kind, True, [], [], Norms(()))
        sources: list[fx.Node] = []

        def back(v: Norms) -> list[Norms]:
            sources[:], inputs = pullbacks[node](v)[:2]
            return _listed(inputs)

        jacobians = _jacobians(back, step.shape)
        sources = [n for n in sources if isinstance(values[n], Norms)]
        sizes = [min(math.prod(step.shape), values[n].size) for n in sources]
        magnitudes = [_magnitude(j, found, size) for j, size in zip(jacobians, sizes, strict=True)]
        zero = Norms.zero(step.shape)
        if found.terms:
            nil = {n: Norms.zero(values[n].shape) for n in sources}
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: nil.get(n, values[n]))
            zero = walk._apply(step, args, kwargs)[0]
        return _Called(step, sources, kind, found.none, jacobians, magnitudes, zero)

    def _copied(self) -> nn.Module | None:
        """The model in float64; None where that is out of reach of the compiled loops, or is its type already."""
        if self.unit < 2.0**-24 or any(isinstance(m, Relaxed) for m in self.walk.model.modules()):
            return None
        return copy.deepcopy(self.walk._root).double()

    def at(self, x: Tensor) -> tuple[Tensor, dict[fx.Node, Norms]]:
        """The scores of inputs in float64, (batch, ...), and the norms of every value on the way, for each example."""
        kept = {n for c in self._calls if not c.exact for n in (c.step.node, *c.sources)}
        try:
            values = _Exact(self.walk, self._exact, kept).values(x)
        except RuntimeError:  # a forward that makes tensors of a type of its own
            if self._exact is None:
                raise
            self._exact = None
            values = _Exact(self.walk, None, kept).values(x)
        return values[self.walk.output()], {n: _norms_of(v) for n, v in values.items() if n in kept}

    @property
    def share(self) -> float:
        """How often the error counts: at x', and at x as far as the scores there are not in float64."""
        return 2.0 if self._exact is None else 1 + 2.0**-53 / self.unit

    def errors(self, sizes: Mapping[fx.Node, Norms], moved: Norms) -> dict[fx.Node, Norms]:
        """Each operation's own rounding, for inputs that differ from those of ``sizes`` by at most ``moved``."""
        apart: dict[fx.Node, Any] = {self.walk.start(): moved}
        found: dict[fx.Node, Norms] = {}
        for call in self._calls:
            node, shape = call.step.node, call.step.shape
            if not call.jacobians:  # parts of a value, moved
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
        """What the roundings make of z_y - z_j, with y in ``top``: shape (batch, K)."""
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
    """The error where nothing can overflow."""
    if isinstance(read.linf, Tensor):
        safe = torch.where(read.linf < HUGE, 0.0, math.inf)
        return error + Norms(error.shape, linf=safe)
    return error if read.linf < HUGE else Norms(error.shape)


def _parts(node: fx.Node, shape: Any, value: Any) -> Any:
    if isinstance(value, tuple):
        return value[cast(int, node.args[1])]
    return tuple(value.reshape(s) for s in shape)


def _norms_of(value: Tensor) -> Norms:
    """The norms of each example's value, from above: sums in float32 of n terms, with what they may lose."""
    rows = value.detach().float().reshape(len(value), -1)
    n = rows.shape[1]
    slack, lost = 1 + (n + 8) * 2.0**-23, math.sqrt(n) * 2.0**-62
    known = [torch.linalg.vector_norm(rows, p, 1).double().cpu() * slack + lost for p in (1, 2, math.inf)]
    return Norms(tuple(value.shape[1:]), *(torch.nan_to_num(k, nan=math.inf, posinf=math.inf) for k in known))


def rows_of(sizes: Mapping[fx.Node, Norms], rows: Tensor) -> dict[fx.Node, Norms]:
    """The norms of some examples."""
    return {n: Norms(s.shape, *(cast(Tensor, b)[rows] for b in (s.l1, s.l2, s.linf))) for n, s in sizes.items()}


class _Exact(fx.Interpreter):
    """Runs a traced model on inputs in float64 throughout: constants are those of the model in its own type."""

    def __init__(self, walk: Walk, double: nn.Module | None, kept: set[fx.Node]) -> None:
        super().__init__(fx.GraphModule(walk._root, walk._graph))
        self._double = None if double is None else dict(double.named_modules(remove_duplicate=False))
        self._fed = {step.node for step in walk.calls()}
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


class Rounded(Walk):
    """A traced model's walk whose norms hold for what floating point computes, forward and back.

    What has no rounding rule (a rule of the user's own) is taken to keep within its norms.
    """

    def __init__(self, walk: Walk) -> None:
        vars(self).update(vars(walk))
        self.unit = unit_of(walk)

    def _apply(self, step: Step, args: Any, kwargs: Any) -> tuple[Any, Any]:
        exact, inner = super()._apply(step, args, kwargs)
        kind, unit = _roundings(self, step, args, kwargs) or EXACT, self.unit
        if not isinstance(exact, Norms):  # parts of a value, moved
            return exact, inner
        output, magnitudes = exact, self._magnitudes(step, args, kwargs, kind, exact, inner)
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
                inputs = tuple(
                    v + size.T(cotangent, v.shape) * (kind.back * unit)
                    for v, (size, _) in zip(_listed(inputs), magnitudes, strict=True)
                )
            if named and not kind.summed:
                # An entry of a parameter collects one term for each entry of the output that it is used for.
                named = {k: n * (1 + (2 * exact.size / _rows_of(n) + 16) * unit) for k, n in named.items()}
            return sources, inputs, named

        return output, pullback

    def _magnitudes(
        self, step: Step, args: Any, kwargs: Any, kind: Roundings, output: Norms, inner: Any
    ) -> list[tuple[OperatorNorms, Norms]]:
        """The norms of |J| in each input, and those of the input; in l2 alone, where that says enough."""
        if not kind.back and (kind.held or not kind.terms):
            return []
        subject, function = self.subject(step)
        bound = inspect.signature(cast(Any, rule_of(function))).bind(subject, *args, **kwargs)
        values = [a for a in flat(bound.arguments) if isinstance(a, Norms)]  # in the order of the rule's answer
        if kind.one_hot:
            jacobians = _jacobians(lambda v: _listed(inner(v)[1]), output.shape)
        else:
            back = _listed(inner(Norms(output.shape, l2=1.0))[1])
            jacobians = [OperatorNorms(two_two=largest(n.l2), one_two=largest(n.linf)) for n in back]
        return [(_magnitude(j, kind, min(output.size, n.size)), n) for j, n in zip(jacobians, values, strict=True)]


def _rows_of(parameter: Norms) -> int:
    return max(1, parameter.shape[0]) if parameter.shape else 1


# ------------------------------------------------------------------------------------------------ linear operations


@rounding(nn.Linear, dn.BoundedLinear)
def linear(module: nn.Linear, x: Norms) -> Roundings:
    return summing(module.in_features + (module.bias is not None), module.out_features, summed=True)


@rounding(F.linear)
def functional_linear(call: Any, input: Norms, weight: Tensor, bias: Tensor | None = None) -> Roundings:
    return summing(weight.shape[1] + 1, weight.shape[0], summed=True)


@rounding(operator.matmul, torch.matmul, T.matmul, torch.mm, T.mm)
def product(call: Any, input: Norms, other: Tensor) -> Roundings:
    return summing(other.shape[0], other.shape[1], summed=True)


@rounding(nn.Conv1d, nn.Conv2d, dn.BoundedConv2d)
def convolution(module: nn.Conv1d | nn.Conv2d, x: Norms) -> Roundings:
    return _convolution(module.weight, module.groups)


@rounding(F.conv1d, F.conv2d, torch.conv1d, torch.conv2d)
def functional_convolution(
    call: Any, input: Norms, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Roundings:  # fmt: skip
    return _convolution(weight, groups)


def _convolution(weight: Tensor, groups: int) -> Roundings:
    return summing(weight[0].numel() + 1, weight.numel() // (groups * weight.shape[1]), summed=True)


@rounding(nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.MaxPool1d, nn.MaxPool2d)
@rounding(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)
def pool(module: nn.Module, x: Norms) -> Roundings:
    return _pool(x, getattr(module, "kernel_size", None), "Max" in type(module).__name__)


def _pool(x: Norms, taps: Any, largest: bool) -> Roundings:
    """Windows of at most the given size; of all places, where none is given. They may overlap."""
    axes = len(x.shape) - 1
    n = math.prod(x.shape[1:]) if taps is None else math.prod(taps) if isinstance(taps, tuple) else taps**axes
    return Roundings(back=n) if largest else summing(n + 1, n + 1)


@rounding(F.max_pool1d, torch.max_pool1d, F.max_pool2d, torch.max_pool2d)
def functional_max_pool(call: Any, input: Norms, kernel_size: Any, *rest: Any, **named: Any) -> Roundings:
    return _pool(input, kernel_size, True)


@rounding(F.avg_pool1d, F.avg_pool2d)
def functional_avg_pool(call: Any, input: Norms, kernel_size: Any, *rest: Any, **named: Any) -> Roundings:
    return _pool(input, kernel_size, False)


@rounding(F.adaptive_avg_pool1d, torch.adaptive_avg_pool1d, F.adaptive_avg_pool2d)
def functional_adaptive_pool(call: Any, input: Norms, output_size: Any) -> Roundings:
    return _pool(input, None, False)


@rounding(torch.sum, T.sum, torch.mean, T.mean)
def total(call: Any, input: Norms, dim: Any = None, keepdim: bool = False) -> Roundings:
    return summing(input.size / max(1, math.prod(call.shape)) + 1, 2.0)


@rounding(dn.Center)
def center(module: dn.Center, x: Norms) -> Roundings:
    # x_i less a mean of n, of which |J| |x| has all but one part in n.
    return Roundings(terms=2 * x.size + 8, output=1.0, back=2 * x.size + 8)


def _two_sided(rows: Tensor, columns: Tensor) -> float:
    """Of ``a x b^T``: the product with a (n terms an entry) is off in l2 by ``n/2 (| |a| | + |a|) |x|``, and so on."""
    a, b = (matrix(t) for t in (rows, columns))
    sizes = [math.sqrt(m.one_one * m.inf_inf) for m in (a, b)]
    parts = [summing(t.shape[1], 0.0) for t in (rows, columns)]
    errors = [p.terms * s + float(p.output) * m.two_two for p, s, m in zip(parts, sizes, (a, b), strict=True)]
    return 1.01 * (errors[0] * b.two_two + errors[1] * a.two_two)


@rounding(dn.LowPass)
def low_pass(module: dn.LowPass, x: Norms) -> Roundings:
    return _transformed(x, [module], (*x.shape[:-2], module.keep, module.keep))


@rounding(dn.ChannelLowPass)
def channel_low_pass(module: dn.ChannelLowPass, x: Norms) -> Roundings:
    parts = [cast(dn.LowPass, m) for m in module.channels]
    return _transformed(x, parts, (sum(m.keep**2 for m in parts),))


def _transformed(x: Norms, parts: list[dn.LowPass], shape: tuple[int, ...]) -> Roundings:
    back = float(sum(2 * m.keep for m in parts) + 8)
    if any(m.rows.is_meta for m in parts):
        return Roundings(more=Norms(shape), back=back)
    worst = max(_two_sided(m.rows, m.columns) for m in parts)
    return Roundings(more=Norms(shape, l2=times(worst, x.l2)), back=back)


@rounding(dn.Whitening)
def whitening(module: dn.Whitening, x: Norms) -> Roundings:
    return summing(module.matrices.shape[1], module.matrices.shape[1])


@rounding(dn.OpponentColors)
def opponent_colors(module: dn.OpponentColors, x: Norms) -> Roundings:
    return Roundings(terms=6.0, back=6.0)


@rounding(dn.Scattering2d)
def scattering(module: dn.Scattering2d, x: Norms) -> Roundings:
    """Four Fourier transforms deep. One of n points along an axis, in stages of r_1 r_2 ... = n, each sqrt(r) times an
    isometry with sums of r products: of no more than ``2 (n + 8) sqrt n`` units in l2, relative to its result."""
    n = module.size + 2 * BORDER
    fine, coarse, mean, mean_of_half = filters(module.size, torch.float64, torch.device("cpu"))
    gain = max(1.0, *(float(f.abs().max()) for f in (fine, coarse)))
    local = max(1.0, *(float(torch.linalg.matrix_norm(m)) for m in (mean, mean_of_half)))
    depth = 4 * (2 * 2 * (n + 8) * math.sqrt(n) + 16) + 2 * n * local + 16
    shape = (81 * x.shape[0], module.size // 4, module.size // 4)
    # 81 maps, the product of at most two filters and a local mean along both axes each.
    return Roundings(more=Norms(shape, l2=times(9 * gain**2 * local**2 * depth, x.l2)), back=depth)


# ------------------------------------------------------------------------------------------------ arithmetic


def _copies(call: Any, *values: Any) -> float:
    size = math.prod(call.shape)
    return max([1.0, *(size / max(1, v.size) for v in values if isinstance(v, Norms))])


@rounding(operator.add, torch.add, T.add, operator.sub, torch.sub, torch.subtract, T.sub)
def add(call: Any, input: Any, other: Any, alpha: float = 1.0) -> Roundings:
    plain = alpha == 1.0 and all(isinstance(v, (Norms, Tensor)) for v in (input, other))  # no number is rounded
    return Roundings(
        terms=0.0 if plain else 2.0, output=1.0, back=_copies(call, input, other) - 1 + (0.0 if alpha == 1.0 else 2.0)
    )


@rounding(operator.mul, torch.mul, torch.multiply, T.mul, operator.truediv, torch.div, torch.divide)
@rounding(torch.true_divide, T.div)
def mul(call: Any, input: Any, other: Any) -> Roundings:
    # The number, its inverse and the product; each entry of the output is one of the input times a factor.
    return Roundings(output=4.0, back=4 + _copies(call, input, other))


@rounding(dn.Shift)
def shift(module: dn.Shift, x: Norms) -> Roundings:
    return Roundings(output=1.0, more=Norms(x.shape, linf=abs(module.offset)))


@rounding(dn.PrivateMean)
def private_mean(module: dn.PrivateMean, x: Norms) -> Roundings:
    return Roundings(output=1.0)


@rounding(T.expand)
def expand(call: Any, input: Norms, *sizes: Any) -> Roundings:
    return Roundings(back=_copies(call, input))


@rounding(torch.amax, T.amax, torch.amin, T.amin)
def extreme(call: Any, input: Norms, dim: Any = None, keepdim: bool = False) -> Roundings:
    return Roundings(back=2.0)


@rounding(torch.maximum, torch.minimum, T.maximum, T.minimum)
def larger(call: Any, input: Any, other: Any) -> Roundings:
    return Roundings(back=2.0)


# ------------------------------------------------------------------------------------------------ exact


def _moved(subject: Any, *arguments: Any, **named: Any) -> Roundings:
    """Entries that are moved, selected, negated or set to zero."""
    return EXACT


rounding(nn.Identity, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle)(_moved)
rounding(nn.ZeroPad1d, nn.ZeroPad2d, dn.Mirror, dn.GroupSort, dn.FullSort, nn.ReLU, F.relu, torch.relu)(_moved)
rounding(T.relu, torch.abs, T.abs, operator.abs, operator.neg, torch.neg, T.neg, F.pad, operator.getitem)(_moved)
rounding(T.view, T.reshape, torch.reshape, torch.flatten, T.flatten, T.unflatten, torch.unflatten)(_moved)
rounding(T.unsqueeze, torch.unsqueeze, T.contiguous, T.clone, torch.clone, torch.permute, T.permute)(_moved)
rounding(torch.transpose, T.transpose, torch.swapaxes, T.swapaxes, torch.squeeze, T.squeeze, torch.flip)(_moved)
rounding(T.flip, torch.narrow, T.narrow, torch.select, T.select, F.pixel_shuffle, F.pixel_unshuffle)(_moved)
rounding(torch.cat, torch.concat, torch.concatenate, torch.stack, torch.chunk, T.chunk, torch.split)(_moved)
rounding(T.split, T.unbind, torch.unbind, dn.GradientBall)(_moved)


@rounding(T.float, T.double)
def retyped(call: Any, input: Norms) -> Roundings:
    return Roundings(output=1.0, back=1.0, diagonal=True)


# ------------------------------------------------------------------------------------------------ elementwise


def _clamped(subject: Any, input: Norms, *ends: Any, **named: Any) -> Roundings:
    return Roundings(output=2.0, back=2.0, diagonal=True)  # the ends are rounded


rounding(nn.ReLU6, F.relu6, nn.Hardtanh, F.hardtanh, dn.Clamp, torch.clamp, T.clamp, torch.clip, T.clip)(_clamped)


def _scaled(subject: Any, input: Norms, *rest: Any, **named: Any) -> Roundings:
    """Entries times a rounded number, such as a slope."""
    return Roundings(output=4.0, back=4.0, diagonal=True)


rounding(nn.LeakyReLU, F.leaky_relu, nn.PReLU, nn.Dropout, nn.Dropout1d, nn.Dropout2d)(_scaled)
rounding(F.dropout, F.dropout1d, F.dropout2d)(_scaled)


def _smooth(subject: Any, input: Norms, *rest: Any, **named: Any) -> Roundings:
    """Elementary functions, some units from the value, the argument or one; bounded ones do not see the argument."""
    return Roundings(16.0, 16.0, Norms(input.shape, linf=16.0), back=64.0, diagonal=True)


def _bounded(subject: Any, input: Norms, *rest: Any, **named: Any) -> Roundings:
    return replace(_smooth(subject, input), terms=0.0)


rounding(nn.Tanhshrink, F.tanhshrink, nn.Softshrink, nn.Hardswish, F.hardswish, nn.LogSigmoid, F.logsigmoid)(_smooth)
rounding(nn.SiLU, F.silu, nn.Mish, F.mish, nn.SELU, F.selu, nn.ELU, F.elu, nn.CELU, nn.GELU, F.gelu)(_smooth)
rounding(nn.Tanh, F.tanh, torch.tanh, T.tanh, nn.Softsign, F.softsign, torch.sin, T.sin, torch.cos, T.cos)(_bounded)
rounding(nn.Sigmoid, F.sigmoid, torch.sigmoid, T.sigmoid, nn.Hardsigmoid, F.hardsigmoid)(_bounded)


@rounding(nn.Softplus)
def softplus(module: nn.Softplus, x: Norms) -> Roundings:
    return functional_softplus(module, x, module.beta, module.threshold)


@rounding(F.softplus)
def functional_softplus(subject: Any, input: Norms, beta: float = 1.0, threshold: float = 20.0) -> Roundings:
    # Where it turns linear it jumps, here and in what it is compared with.
    return replace(_smooth(subject, input), apart=2 * math.exp(-threshold) / abs(beta))


@rounding(nn.Softmax)
def softmax(module: nn.Softmax, x: Norms) -> Roundings:
    return functional_softmax(module, x, module.dim)


@rounding(F.softmax, torch.softmax, T.softmax)
def functional_softmax(subject: Any, input: Norms, dim: Any = None, *rest: Any, **named: Any) -> Roundings:
    # exp(-t) is off by t exp(-t) units, at most one, from the rounding of t, and a sum of n positive terms by n.
    return Roundings(output=input.size + 32.0, more=Norms(input.shape, linf=4.0), back=4.0 * input.size + 32)


@rounding(dn.LogCompression)
def log_compression(module: dn.LogCompression, x: Norms) -> Roundings:
    return Roundings(output=16.0, back=16.0, diagonal=True)


@rounding(dn.Householder)
def householder(module: dn.Householder, x: Norms) -> Roundings:
    return Roundings(terms=16.0, output=4.0, back=16.0)


@rounding(dn.LinearSpline, dn.CoefficientSpline)
def spline(module: Any, x: Norms) -> Roundings:
    # intercept + slope x, of a table in float32; a knot may be taken for its neighbour's piece within a few roundings
    # of the place, which are in units of the whole range. Beyond the range slopes are the tails'.
    with torch.no_grad():
        intercept, slope = module.pieces()
    size = (float(intercept.abs().max()) + 2 * float(slope.abs().max()) * module.range) / module.scale()
    tails = 16.0 if bool(module.tails.any()) else 0.0
    return Roundings(tails, 4.0, Norms(x.shape, linf=16 * size), back=16.0, diagonal=True)


# ------------------------------------------------------------------------------------------------ of whole examples


@rounding(dn.BallProjection)
def ball_projection(module: dn.BallProjection, x: Norms) -> Roundings:
    # The factor is off by the inward slack (4e-6), by the norm's allowance for n squares, and by their own roundings;
    # where the norm is inside even so, it is one, or next to it.
    slack = 1.5 * x.size + 84 + math.sqrt(x.size) * 2.0**-62 / (module.radius * 2.0**-24)
    inside = module.radius * (1 - 2 * slack * 2.0**-24)
    if isinstance(x.l2, Tensor):
        outside = torch.where(x.l2 < 1e18, torch.full_like(x.l2, slack), math.inf)
        output: Bound = torch.where(x.l2 <= inside, torch.full_like(x.l2, 4.0), outside)
    else:
        output = 4.0 if x.l2 <= inside else slack if x.l2 < 1e18 else math.inf
    return Roundings(output=output, back=4.0 * x.size + 128, held=True)


@rounding(dn.Frozen)
def frozen(module: dn.Frozen, x: Norms) -> Roundings:
    return Roundings(output=math.inf, held=True)  # nothing is known of what is inside


def _normalised(module: Any, x: Norms) -> Roundings:
    """(x - mean) / sqrt(variance + eps), of groups of at most all n entries, with the variance from squares.

    The mean is off by n units of the largest entry X, the variance by 4 n X^2: an entry, of at most sqrt n, by
    ``(n + 8) X / sqrt eps + (4 n X^2 / eps + 8) sqrt n``.
    """
    n, eps, top = x.size, module.eps, x.linf
    square = times(top, top)
    size = times(top, (n + 8) / math.sqrt(eps)) + (times(square, 4 * n / eps) + 8) * math.sqrt(n) if eps else math.inf
    return Roundings(more=Norms(x.shape, linf=size), back=4.0 * n + 64, held=True)


rounding(nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d)(_normalised)


@rounding(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def batch_norm(module: Any, x: Norms) -> Roundings:
    # a x + b with a = weight / sqrt(variance + eps), and b = bias - mean a, of two terms that may cancel: some eight
    # operations, in the one order or in that of (x - mean) a + bias.
    scale = (module.running_var.double() + module.eps).rsqrt()
    offset = module.bias.detach().double() if module.affine else torch.zeros_like(scale)
    scale = scale * module.weight.detach() if module.affine else scale
    parts = offset.abs() + (module.running_mean * scale).abs()
    more = Norms.of(parts.reshape(-1, *[1] * (len(x.shape) - 1))).repeat(x.shape) * 16.0
    return Roundings(16.0, 4.0, more, back=16.0, diagonal=True)


@rounding(dn.ScaledL2NormPool2d)
def l2_pool(module: dn.ScaledL2NormPool2d, x: Norms) -> Roundings:
    return Roundings(output=module.kernel_size**2 + 16.0, back=module.kernel_size**2 + 16.0)


@rounding(dn.LInfDistance, dn.LInfDistance2d, dn.SortNetLinear)
def distances(module: Any, x: Norms) -> Roundings:
    # Differences, a maximum and a bias; of a power mean (a sum of as many powers as features), or of ranks, also those.
    points, features = module.weight.shape[0], module.weight[0].numel()
    depth = 4.0 if math.isinf(module.p) else 4.0 * features + 64
    ranks = float(getattr(module, "top", 0))
    windows = getattr(module, "kernel_size", 1) ** 2
    return Roundings(depth + ranks, 4.0, back=points * windows + depth + ranks, one_hot=True)


@rounding(dn.TabularInput)
def tabular_input(module: dn.TabularInput, x: Norms) -> Roundings:
    # Numbers of at most one. Those of x alone do not count, however far a column lies from 0: x is cut exactly, and its
    # difference to low is off by a unit of itself, as are the width, both logarithms (that of 1 + a moves by at most as
    # many parts of itself as a does) and their quotient: 8 units of at most one. A block of g sums g entries of at most
    # one, and is left as it is up to 1e-6 beyond the simplex, here and in what it is compared with.
    group = max([0, *module.groups])
    return Roundings(0.0, 8.0, Norms(x.shape, linf=8.0 + 2.0 * group**2), back=4.0 * group + 32, apart=2e-6, held=True)
