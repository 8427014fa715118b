"""Tracing a model: its torch.fx graph, checked against the model itself, or a refusal that says why."""

from __future__ import annotations

import math
import operator
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError
from torch.nn.utils import parametrize

import dplip.rules  # noqa: F401  (registers the rules)
from dplip.errors import ConfigurationError, DPLipError, first_line
from dplip.fingerprint import has_foreign_code
from dplip.mixing import ROWS, close, mixes, seeded
from dplip.norms import FLOATS, is_real
from dplip.rules.registry import module_rule, refuse, rule_of

REMEDIES = {
    "BatchNorm": (
        "mixes the examples of a batch.",
        "Use dplip.nn.Center, or GroupNorm without affine, instead; one with statistics of public data may stay in "
        "eval() mode, its weights frozen.",
    ),
    "SyncBatchNorm": ("mixes the examples of a batch.", "Use dplip.nn.Center instead."),
    "Bilinear": ("multiplies two values.", "Use sums of linear layers."),
    "MultiheadAttention": (
        "multiplies values that depend on the example.",
        "Use linear and convolutional layers.",
    ),
}

FOLDABLE = {
    *(
        operator.neg,
        operator.add,
        operator.sub,
        operator.mul,
        operator.truediv,
        operator.getitem,
        operator.pow,
    ),
    *(torch.sqrt, torch.exp, torch.reciprocal, torch.rsqrt, torch.square, torch.abs, torch.Tensor.view),
    *(
        torch.Tensor.reshape,
        torch.Tensor.unsqueeze,
        torch.Tensor.sqrt,
        torch.Tensor.exp,
        torch.Tensor.reciprocal,
    ),
    *(
        torch.Tensor.abs,
        torch.Tensor.flatten,
        torch.Tensor.t,
        torch.t,
        torch.Tensor.float,
        torch.Tensor.double,
    ),
    *(
        torch.flatten,
        torch.reshape,
        torch.unsqueeze,
        torch.Tensor.transpose,
        torch.Tensor.permute,
        torch.clamp,
    ),
    *(torch.add, torch.sub, torch.mul, torch.div, torch.neg, torch.Tensor.contiguous, torch.Tensor.expand),
}
"""Pure functions of constants alone, which are simply evaluated."""


class _BatchDependent:
    """Stands for a number that depends on the size of the batch: good for a shape, and for nothing else."""

    def __repr__(self) -> str:
        return "a number that depends on the batch size"


BATCH = _BatchDependent()


@dataclass(frozen=True)
class Step:
    """One node of the traced graph, ready to run: what is called, and the shape of one example's output."""

    node: fx.Node
    path: str
    shape: Any


class Root(nn.Module):
    """Holds the model as a child, so that a model that is a single layer is walked like any other."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model(x)


class _Proxy(fx.Proxy):
    """A proxy on which in-place operators raise: plain fx records ``x += y`` as if it made a new value."""


def _in_place(name: str) -> Callable[..., Any]:
    def method(self: Any, *_: Any) -> Any:
        refuse("the model", name, "changes a value in place.", "Write x = x + y in place of x += y.")

    return method


for _name in (
    "add",
    "sub",
    "mul",
    "matmul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
):
    setattr(_Proxy, f"__i{_name}__", _in_place(f"__i{_name}__"))
for _name in ("__setitem__", "__delitem__"):
    setattr(_Proxy, _name, _in_place(_name))


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = m.__module__.startswith("torch.nn") and not isinstance(m, nn.Sequential)
        return own or module_rule(m) is not None or _shadows_rule(m)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


def _shadows_rule(m: nn.Module) -> bool:
    """Whether the module inherits a forward that has a rule, but not in a way that the rule may be trusted for."""
    return rule_of(type(m).forward) is not None


def check_modules(model: nn.Module) -> None:
    for name, module in model.named_modules():
        path, what = name or "the model", type(module).__name__
        if isinstance(module, nn.modules.lazy.LazyModuleMixin):
            refuse(path, what, "has no weights yet.", "Run the model once, on a batch of public shape.")
        if parametrize.is_parametrized(module):
            refuse(
                path,
                what,
                "has a parametrization; the gradient of its raw parameter has no known bound (and "
                "torch's spectral_norm is a lower bound).",
                "Use dplip.constrain(layer, 'weight', ...) instead.",
            )
        tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        for table in tables:
            if any(not isinstance(hook, Observer) for hook in getattr(module, table).values()):
                refuse(
                    path,
                    what,
                    "has a hook, which may do anything.",
                    "Remove the hook (or the wrapper that adds it).",
                )
        if "forward" in vars(module):
            remedy = "Make it a module with a rule; to compile a model, call model.compile()."
            refuse(path, what, "has had its forward replaced on the instance.", remedy)
    for name, parameter in model.named_parameters():
        if not is_real(parameter):
            refuse(
                name,
                "a parameter",
                f"is of type {parameter.dtype}, {parameter.layout}, whose arithmetic the bounds do not cover.",
                "Train in float32: model.float(). (For speed, see half precision in docs/guarantees.md.)",
            )
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            refuse(name, "a parameter", "has a hook on its gradient.", "Remove the hook.")
    held = torch.nn.modules.module
    if any(getattr(held, f"_global{t}") for t in tables):
        refuse("torch", "a global hook", "is registered, which may do anything.", "Remove it.")


BESIDE = "_compiled_call_impl", "_forward_hooks", "_forward_pre_hooks"
"""What else a call of a module runs: what ``module.compile()`` made of its code, which fx cannot trace, and hooks, of
which :func:`check_modules` allows only those that look and change nothing."""


@contextmanager
def bare(model: nn.Module) -> Iterator[None]:
    """Run the modules' own Python code inside, and nothing besides."""
    dressed = [(held, {k: held[k] for k in BESIDE if held.get(k)}) for m in model.modules() if (held := vars(m))]
    dressed = [(held, beside) for held, beside in dressed if beside]
    for held, beside in dressed:
        held.update({k: None if k == BESIDE[0] else {} for k in beside})
    try:
        yield
    finally:
        for held, beside in dressed:
            held.update(beside)


class Observer:
    """Base class of hooks of the library's own, which look and change nothing."""


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Leave every random state as it was."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def _random_states() -> tuple[Any, ...]:
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    name, words, *rest = np.random.get_state(legacy=True)
    states = [state.numpy().tobytes() for state in (torch.get_rng_state(), *devices)]
    return states, random.getstate(), name, np.asarray(words).tobytes(), rest


def trace(root: Root) -> fx.Graph:
    with _undisturbed():
        before = _random_states()
        try:
            graph = _Tracer().trace(root)
        except DPLipError:
            raise
        except TraceError as wrong:
            refuse(
                "the model",
                "its forward",
                f"depends on the data in its control flow ({wrong}).",
                "Write it without if, while, len() or int() on values.",
            )
        except Exception as wrong:
            refuse(
                "the model",
                "its forward",
                f"cannot be traced by torch.fx ({type(wrong).__name__}: {wrong}).",
                "Write it with layers and torch functions of its input alone.",
            )
        drawn = _random_states() != before
    if drawn:
        refuse("the model", "its forward", "draws random numbers outside a layer with a rule.", "Use nn.Dropout.")
    if sum(n.op == "placeholder" for n in graph.nodes) != 1:
        refuse("the model", "its forward", "takes several inputs.", "Give it one tensor.")
    return graph


def check_rules(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
    """Refuse by name what has no rule, before anything is run."""
    for node in graph.nodes:
        if node.op == "call_module":
            module = modules[str(node.target)]
            if module_rule(module) is None or _takes_statistics(module):
                what = type(module).__name__
                reason, remedy = next(
                    (v for k, v in REMEDIES.items() if what.startswith(k)),
                    ("has no rule that bounds it.", "Use another layer, or write a rule: @dplip.rule(...)."),
                )
                if module_rule(module) is None and _shadows_rule(module):
                    reason = "changes a layer that has a rule, so that the rule may no longer hold."
                refuse(_path(node), what, reason, remedy)
        elif node.op in ("call_function", "call_method"):
            target = target_of(node)
            if target is None:
                refuse(_path(node), f"Tensor.{node.target}", "is not a tensor method.", "Use another operation.")
            known = rule_of(target) is not None or target in FOLDABLE or target in _SHAPE_READERS
            if not known and not _reads_shape(node):
                name = getattr(target, "__name__", str(target))
                reason = (
                    "changes a value in place."
                    if name.endswith("_") and not name.endswith("__")
                    else "has no rule that bounds it."
                )
                refuse(_path(node), name, reason, "Use another operation, or write a rule: @dplip.rule(...).")


def _takes_statistics(module: nn.Module) -> bool:
    """Whether a module normalises by what its batch holds; refused before it is run, since it would keep count."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None)


_SHAPE_READERS = {torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel, operator.floordiv, operator.mod}


def _reads_shape(node: fx.Node) -> bool:
    return node.target is getattr and node.args[1] in ("shape", "ndim", "dtype", "device")


@dataclass(frozen=True)
class Probe:
    """What running a graph on batches of two sizes has shown.

    Attributes:
        values: the nodes' values that are numbers.
        steps: the nodes, with the shape of one example's value.
        fault: what else the model was seen to do that no rule tells: mix examples, or differ from its trace elsewhere.
        draws: whether random numbers were drawn.
    """

    values: dict[fx.Node, Any]
    steps: dict[fx.Node, Step]
    fault: tuple[str, str, str] | None
    draws: bool


def probe(root: Root, graph: fx.Graph, input_shape: tuple[int, ...]) -> Probe:
    """Run the traced graph on several batches, and compare with the model itself: shapes, numbers, and agreement."""
    module = fx.GraphModule(root, graph)
    records = []
    draws = False
    plain = torch.inference_mode(False), torch.autocast(_rows(root, 1, input_shape).device.type, enabled=False)
    with _undisturbed(), plain[0], plain[1], torch.enable_grad():
        for batch in (2, 3):
            recorder = _Recorder(module)
            x = _rows(root, batch, input_shape)
            results = []
            for run in (recorder.run, root):
                torch.manual_seed(10 + batch)
                before = _random_states()
                try:
                    results.append(run(x.clone()))  # a clone may be changed in place
                except DPLipError:
                    raise
                except Exception as wrong:
                    raise ConfigurationError(
                        f"input_shape={input_shape}: the model does not run on a batch of such examples, in numbers "
                        f"of {x.dtype} ({type(wrong).__name__}: {first_line(wrong)}). Give the shape of one example, "
                        "without the batch."
                    ) from None
                after = _random_states()
                if after[1:] != before[1:]:
                    known = "draws from numpy's or Python's global generator, whose state others may know."
                    refuse("the model", "its forward", known, "Draw with torch.")
                draws = draws or after != before
            if not isinstance(results[0], Tensor):
                kind = type(results[0]).__name__.removeprefix("immutable_")  # as torch.fx has it
                given = f"returns a {kind} and not one tensor."
                refuse("the model", "its forward", given, "Return the scores alone.")
            if not (isinstance(results[1], Tensor) and close(results[0], results[1], AGREED)):
                refuse("the model", *_DISAGREEMENT)
            same = _own_functions(results[0]) == _own_functions(results[1])
            if not same or not _alike(*(_sent_back(result, x, root) for result in results)):
                refuse(
                    "the model",
                    "its backward",
                    "gives other gradients than its trace (a custom autograd function).",
                    "Put that in a module, and write a rule for it: @dplip.rule(...).",
                )
            records.append(recorder.seen)
        steps, values = _steps(graph, *records)
        try:
            disagrees = None if _agree_elsewhere(module, root, input_shape) else _DISAGREEMENT
            fault = disagrees or (_MIXING if _examples_mix(root, input_shape, alone=not draws) else None)
        except Exception as wrong:
            reason = f"runs on 2 and 3 examples and not on others ({type(wrong).__name__}: {first_line(wrong)})."
            fault = "its forward", reason, "Treat each example by itself."
    return Probe(values, steps, fault, draws)


def _steps(graph: fx.Graph, twos: Mapping[fx.Node, Any], threes: Mapping[fx.Node, Any]) -> tuple[Any, Any]:
    """The nodes with their shapes, and the values that are numbers, from what two and three examples gave."""
    values: dict[fx.Node, Any] = {}
    steps: dict[fx.Node, Step] = {}
    fed = {n for n in graph.nodes if n.op == "placeholder"}
    for node in graph.nodes:
        if node.op == "output":
            continue
        two, three = twos[node], threes[node]
        shape = None
        if not isinstance(two, (Tensor, tuple, list)) or isinstance(two, torch.Size):
            # A number made of the batch size is one whatever it came to here; an entry of a shape need not be.
            made = node.target is not operator.getitem and any(values.get(n) is BATCH for n in node.all_input_nodes)
            values[node] = BATCH if made or two != three else two
        elif node in fed or any(n in fed for n in node.all_input_nodes):
            fed.add(node)
            shape = _example_shape(node, two, three)
        steps[node] = Step(node, _path(node), shape)
    return steps, values


_DISAGREEMENT = (
    "its forward",
    "gives other results than its trace (state, randomness, side effects, or a number read off a weight or a global).",
    "Make it a pure function of its input, whose weights and buffers it uses as tensors.",
)

_MIXING = "its forward", "makes one example's output or gradient depend on another.", "Treat each by itself."

AGREED = 1e-3
"""The relative difference of a model and its trace that rounding explains: they run the same operations."""


def _rows(root: nn.Module, count: int, input_shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
    """Random examples, the same at every call, of the type and on the device of the model."""
    like = next((t for t in (*root.parameters(), *root.buffers()) if t.dtype in FLOATS), torch.zeros(0))
    generator = torch.Generator().manual_seed(count)
    x = torch.randn((count, *input_shape), generator=generator, dtype=like.dtype) * scale
    return x.to(like.device).requires_grad_()


def _sent_back(result: Tensor, x: Tensor, root: nn.Module) -> list[Tensor]:
    """The gradients of a fixed combination of the outputs, for the input and all parameters."""
    wanted = [x, *(p for p in root.parameters() if p.requires_grad)]
    if not result.requires_grad:
        return []
    weights = torch.linspace(-1.0, 1.5, result.numel(), dtype=result.dtype, device=result.device)
    found = torch.autograd.grad(result, wanted, weights.reshape(result.shape), allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)]


def _alike(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(close(a, b, AGREED) for a, b in zip(ours, theirs, strict=True))


def _agree_elsewhere(module: nn.Module, root: Root, input_shape: tuple[int, ...]) -> bool:
    """Whether graph and model also agree without gradients, on other sizes, and with other weights and buffers."""

    def agree(count: int, scale: float) -> bool:
        results = []
        for run in (module, root):
            x = _rows(root, count, input_shape, scale).detach()
            with seeded(x.device):
                results.append(run(x))
        return close(results[0], results[1], AGREED)

    with torch.no_grad():
        if not (agree(1, 1e-2) and agree(7, 30.0)):
            return False
        with torch.inference_mode():
            if not agree(2, 1.0):
                return False
    with other_values(root):
        return agree(2, 1.0)


@contextmanager
def other_values(root: nn.Module) -> Iterator[None]:
    """Put other numbers into all weights and buffers inside; the old ones are neither copied nor written to."""
    held = {id(t): t for t in (*root.parameters(), *root.buffers()) if t.dtype in FLOATS and not t.is_inference()}
    kept = [(t, t.data) for t in held.values()]
    try:
        for t, old in kept:
            t.data = old * (1 + torch.rand_like(old) / 2) + torch.rand_like(old) / 8
        yield
    finally:
        for t, old in kept:
            t.data = old


def _examples_mix(root: Root, input_shape: tuple[int, ...], alone: bool) -> bool:
    small = math.prod(input_shape) <= 4096  # a larger batch shows more, and costs more
    x = _rows(root, 33 if small else ROWS, input_shape).detach()
    return mixes(root, [x], [p for p in root.parameters() if p.requires_grad], alone)


class PublicRows:
    """Two random examples, fixed once, on which a model and its trace are compared at every step.

    Args:
        root, input_shape: as for :func:`probe`.

    What a forward reads that is no attribute of its model (a global, a clock, the environment) cannot be listed. What
    it makes of an example can be looked at, with the present weights, mode and surroundings.
    """

    def __init__(self, root: Root, input_shape: tuple[int, ...]) -> None:
        self._root, self._x = root, _rows(root, 2, input_shape)

    def of_model(self, gradients: bool = True) -> list[Tensor] | None:
        """The model's output for them, and the gradients that go back from there; None where no code may read more
        than attributes, and there is nothing to look at."""
        return self._through(self._root, gradients) if has_foreign_code(self._root) else None

    def of_trace(self, graph: nn.Module, gradients: bool = True) -> list[Tensor]:
        """The same of its trace."""
        return self._through(graph, gradients)

    def _through(self, run: Callable[[Tensor], Any], gradients: bool) -> list[Tensor]:
        like = next((t for t in (*self._root.parameters(), *self._root.buffers()) if t.dtype in FLOATS), self._x)
        if (like.dtype, like.device) != (self._x.dtype, self._x.device):
            self._x = self._x.detach().to(like).requires_grad_()
        modes = torch.inference_mode(False), torch.autocast(self._x.device.type, enabled=False)
        with bare(self._root), seeded(self._x.device), modes[0], modes[1], torch.set_grad_enabled(gradients):
            result = run(self._x.clone())  # a clone may be changed in place
            if not isinstance(result, Tensor):
                return []
            return [result, *_sent_back(result, self._x, self._root)] if gradients else [result]


def agree(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """Whether the same was made of the public rows, as far as both tell."""
    return len(ours) > 0 < len(theirs) and all(close(a, b, AGREED) for a, b in zip(ours, theirs, strict=False))


def _own_functions(result: Tensor) -> Counter[str]:
    """The custom autograd functions in the graph of a result: in a traced one, those inside layers alone."""
    seen, found, left = set(), Counter[str](), [result.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            found[type(node).__name__] += 1
        left += [source for source, _ in node.next_functions]
    return found


def _example_shape(node: fx.Node, two: Any, three: Any) -> Any:
    if isinstance(two, (tuple, list)):
        return tuple(_example_shape(node, a, b) for a, b in zip(two, three, strict=True))
    if not is_real(two):
        refuse(
            _path(node),
            str(node.target),
            f"gives values of type {two.dtype}, {two.layout}, whose arithmetic the bounds do not cover.",
            "Compute in float32.",
        )
    a, b = tuple(two.shape), tuple(three.shape)
    if not a or a[0] != 2 or b[0] != 3 or a[1:] != b[1:]:
        refuse(
            _path(node),
            str(node.target),
            f"turns batches of 2 and 3 examples into shapes {a} and {b}, so examples may mix.",
            "Keep the batch as the first axis: x.flatten(1) or x.view(x.size(0), -1).",
        )
    return a[1:]


class _Recorder(fx.Interpreter):
    """Runs the graph and keeps what each node gave."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.seen: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.seen[n] = super().run_node(n)
        return self.seen[n]


def attribute(root: nn.Module, target: str) -> Any:
    value: Any = root
    for part in target.split("."):
        value = getattr(value, part)
    return value


def target_of(node: fx.Node) -> Any:
    return getattr(torch.Tensor, str(node.target), None) if node.op == "call_method" else node.target


def _path(node: fx.Node) -> str:
    if node.op == "call_module":
        path = str(node.target)
    else:
        stack = node.meta.get("nn_module_stack") or {}
        path = next(reversed([str(v[0] if isinstance(v, tuple) else k) for k, v in stack.items()]), "model")
    return path.removeprefix("model").removeprefix(".") or "the model"


def describe(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    if node.op == "call_module":
        return type(modules[str(node.target)]).__name__
    return getattr(target_of(node), "__name__", str(node.target))


def flat(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, slice):
        value = (value.start, value.stop, value.step)
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        for item in value:
            yield from flat(item)
    else:
        yield value
