"""The walk over a model: norms forward, then the pullback of cotangent norms, over its torch.fx graph."""

from __future__ import annotations

import inspect
import operator
import random
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
from dplip.errors import ConfigurationError, DPLipError, UnboundedOperationError
from dplip.norms import Norms
from dplip.rules.registry import Call, module_rule, refuse, rule_of

ModelPullback = Callable[[Norms], tuple[Norms, dict[str, Norms]]]

REMEDIES = {
    "BatchNorm": ("mixes the examples of a batch.", "Use dplip.nn.Center, or GroupNorm without affine, instead."),
    "SyncBatchNorm": ("mixes the examples of a batch.", "Use dplip.nn.Center instead."),
    "Bilinear": ("multiplies two values.", "Use sums of linear layers."),
    "MultiheadAttention": ("multiplies values that depend on the example.", "Use linear and convolutional layers."),
}

FOLDABLE = {
    *(operator.neg, operator.add, operator.sub, operator.mul, operator.truediv, operator.getitem, operator.pow),
    *(torch.sqrt, torch.exp, torch.reciprocal, torch.rsqrt, torch.square, torch.abs, torch.Tensor.view),
    *(torch.Tensor.reshape, torch.Tensor.unsqueeze, torch.Tensor.sqrt, torch.Tensor.exp, torch.Tensor.reciprocal),
    *(torch.Tensor.abs, torch.Tensor.flatten, torch.Tensor.t, torch.t, torch.Tensor.float, torch.Tensor.double),
    *(torch.flatten, torch.reshape, torch.unsqueeze, torch.Tensor.transpose, torch.Tensor.permute, torch.clamp),
    *(torch.add, torch.sub, torch.mul, torch.div, torch.neg, torch.Tensor.contiguous, torch.Tensor.expand),
}
"""Pure functions of constants alone, which are simply evaluated."""


class _BatchDependent:
    """Stands for a number that depends on the size of the batch: good for a shape, and for nothing else."""

    def __repr__(self) -> str:
        return "a number that depends on the batch size"


BATCH = _BatchDependent()


def propagate(
    model: nn.Module, input_shape: tuple[int, ...], input_norms: Norms | None = None
) -> tuple[Norms, ModelPullback]:
    """Bound what one example can become in a model, and how large its cotangents can grow on the way back.

    Args:
        model: in the mode (train or eval) that is meant; not run on data, not changed.
        input_shape: shape of one example, without the batch.
        input_norms: bounds of one example's input; None: nothing is known.

    Returns:
        ``(output, pullback)``: the norms of one example's output, and a function from the norms of the cotangent of
        that output to ``(norms of the input's cotangent, {parameter name: norms of its cotangent})``.

    Raises:
        UnboundedOperationError: something in the model has no rule, or no rule can be trusted for it.

    Guarantee: for every input within ``input_norms`` and every cotangent within the given norms, for the present
    weights, in exact arithmetic; the operator norms carry slack for float64 rounding.
    """
    return Walk(model, input_shape)(input_norms)


@dataclass(frozen=True)
class _Step:
    """One node of the traced graph, ready to run: what is called, and the shape of one example's output."""

    node: fx.Node
    path: str
    shape: Any


class Walk:
    """A traced model that can be walked again whenever its weights have changed.

    Args:
        model, input_shape: as for :func:`propagate`.
    """

    def __init__(self, model: nn.Module, input_shape: tuple[int, ...]) -> None:
        self.model = model
        self.input_shape = (input_shape,) if isinstance(input_shape, int) else tuple(input_shape)
        self.fingerprint = fingerprint(model)
        _check_modules(model)
        self._root = _Root(model)
        self._graph = _trace(self._root)
        self._modules = dict(self._root.named_modules(remove_duplicate=False))
        self._names = {id(p): name for name, p in model.named_parameters()}
        _check_rules(self._graph, self._modules)
        self._values, self._steps = _probe(self._root, self._graph, self.input_shape)
        self._head: fx.Node | None = None

    def current(self) -> bool:
        """Whether the model still has the modules and modes that were traced."""
        return fingerprint(self.model) == self.fingerprint

    def __call__(self, input_norms: Norms | None = None) -> tuple[Norms, ModelPullback]:
        """Walk forward with the present weights; see :func:`propagate`."""
        values, pullbacks = self._forward(input_norms)
        output = self._output()
        result = values[output]
        if not isinstance(result, Norms):
            raise UnboundedOperationError("The model's output does not depend on its input, or is not one tensor.")

        def pullback(cotangent: Norms) -> tuple[Norms, dict[str, Norms]]:
            if cotangent.shape != result.shape:
                raise ConfigurationError(
                    f"cotangent of shape {cotangent.shape}: the model's output has shape {result.shape}."
                )
            return self._backward(pullbacks, values, {output: cotangent})

        return result, pullback

    def head(self) -> tuple[Tensor, Callable[[Norms], Norms]] | None:
        """The weight of the linear layer that ends the model, and the pullback from its input; None without one."""
        node = self._output()
        while node.op == "call_module" and isinstance(self._modules[str(node.target)], nn.Identity):
            node = node.args[0]  # type: ignore[assignment]
        if node.op != "call_module" or len(self._steps[node].shape) != 1:
            return None
        layer = self._modules[str(node.target)]
        if not isinstance(layer, nn.Linear):
            return None
        before = node.args[0]
        values, pullbacks = self._forward(None)
        return layer.weight, lambda v: self._backward(pullbacks, values, {before: v})[0]  # type: ignore[dict-item]

    def _output(self) -> fx.Node:
        out = next(n for n in self._graph.nodes if n.op == "output").args[0]
        if not isinstance(out, fx.Node):
            raise UnboundedOperationError("The model returns several values. Return one tensor: the scores.")
        return out

    def _forward(self, input_norms: Norms | None) -> tuple[dict[fx.Node, Any], dict[fx.Node, Any]]:
        x = Norms(self.input_shape) if input_norms is None else input_norms
        if x.shape != self.input_shape:
            raise ConfigurationError(f"input_norms of shape {x.shape}, but input_shape={self.input_shape}.")
        values: dict[fx.Node, Any] = {}
        pullbacks: dict[fx.Node, Any] = {}
        for node, step in self._steps.items():
            if node.op == "placeholder":
                values[node] = x
            elif node.op == "get_attr":
                values[node] = _attribute(self._root, str(node.target))
            elif node in self._values:
                values[node] = self._values[node]
            else:
                args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])  # type: ignore[no-untyped-call]
                if any(isinstance(a, Norms) for a in _flat((args, kwargs))):
                    values[node], pullbacks[node] = self._apply(step, args, kwargs)
                else:
                    values[node] = self._fold(step, args, kwargs)
        return values, pullbacks

    def _apply(self, step: _Step, args: Any, kwargs: Any) -> tuple[Any, Any]:
        node = step.node
        if node.op == "call_module":
            subject: Any = self._modules[str(node.target)]
            function = module_rule(subject)
        else:
            target = _target(node)
            subject, function = Call(target, step.shape, step.path), rule_of(target)
        assert function is not None  # _check_rules saw to it
        try:
            bound = inspect.signature(function).bind(subject, *args, **kwargs)
        except TypeError as wrong:
            refuse(step.path, _describe(node, self._modules), f"is called in a way its rule does not know ({wrong}).",
                   "Use the plain form of the call.")  # fmt: skip
        if bound.arguments.get("inplace") or getattr(subject, "inplace", False) is True:
            refuse(step.path, _describe(node, self._modules), "changes its input in place.", "Use inplace=False.")
        try:
            output, pullback = function(*bound.args, **bound.kwargs)
        except UnboundedOperationError as refused:
            if str(refused).startswith(step.path):
                raise
            raise UnboundedOperationError(f"{step.path}: {refused}") from None
        shape = tuple(o.shape for o in output) if isinstance(output, tuple) else output.shape
        if shape != step.shape:
            raise DPLipError(
                f"{step.path}: the rule of {_describe(node, self._modules)} says that one example's output has shape "
                f"{shape}, but it has {step.shape}. Correct the rule."
            )
        return output, pullback

    def _fold(self, step: _Step, args: Any, kwargs: Any) -> Any:
        tensors = [a for a in _flat((args, kwargs)) if isinstance(a, Tensor)]
        target = _target(step.node)
        what = _describe(step.node, self._modules)
        if any(t.requires_grad for t in tensors):
            refuse(step.path, what, "computes with a trainable parameter before it meets an example.",
                   "Use the parameter itself, or freeze it.")  # fmt: skip
        if target not in FOLDABLE:
            refuse(step.path, what, "is not known to be a pure function of constants.", "Compute it once, as a buffer.")
        if any(a is BATCH for a in _flat((args, kwargs))):
            refuse(step.path, what, "depends on the size of the batch.", "Use sizes of one example.")
        return target(*args, **kwargs)

    def _backward(
        self, pullbacks: Mapping[fx.Node, Any], values: Mapping[fx.Node, Any], cotangents: dict[fx.Node, Any]
    ) -> tuple[Norms, dict[str, Norms]]:
        parameters: dict[str, Norms] = {}
        for node in reversed(list(pullbacks)):
            cotangent = cotangents.pop(node, None)
            if cotangent is None:
                continue
            inputs, named = pullbacks[node](cotangent)
            self._collect(parameters, node, named)
            sources = [n for n in _flat((node.args, node.kwargs)) if isinstance(n, fx.Node)]
            sources = [n for n in sources if _depends(values[n])]
            inputs = (inputs,) if isinstance(inputs, Norms) else tuple(inputs)
            for source, v in zip(sources, inputs, strict=True):
                cotangents[source] = _plus(cotangents[source], v) if source in cotangents else v
        start = next(n for n in self._graph.nodes if n.op == "placeholder")
        return cotangents.get(start, Norms.zero(self.input_shape)), parameters

    def _collect(self, parameters: dict[str, Norms], node: fx.Node, named: Mapping[str | Tensor, Norms]) -> None:
        """Add one call's parameter cotangents to the model's: a shared parameter's add up."""
        module = self._modules[str(node.target)] if node.op == "call_module" else None
        for key, norms in named.items():
            tensor = module.get_parameter(key) if module is not None and isinstance(key, str) else key
            name = self._names.get(id(tensor))
            if name is not None and isinstance(tensor, Tensor) and tensor.requires_grad:
                parameters[name] = parameters[name] + norms if name in parameters else norms
        if module is not None:
            for key, parameter in module.named_parameters():
                if parameter.requires_grad and key not in named:
                    refuse(str(node.target), type(module).__name__, f"has a parameter {key!r} that its rule does not bound.",
                           "Add it to what the rule's pullback returns, or freeze it.")  # fmt: skip


class _Root(nn.Module):
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


for _name in ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift"):
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


def fingerprint(model: nn.Module) -> tuple[Any, ...]:
    """What a trace depends on: the modules, their modes, and which parameters are trained."""
    modules = tuple((id(m), m.training) for m in model.modules())
    return modules, tuple((id(p), p.requires_grad) for p in model.parameters())


def _check_modules(model: nn.Module) -> None:
    for name, module in model.named_modules():
        path, what = name or "the model", type(module).__name__
        if parametrize.is_parametrized(module):
            refuse(path, what, "has a parametrization; the gradient of its raw parameter has no known bound (and torch's "
                   "spectral_norm is a lower bound).", "Use dplip.constrain(layer, 'weight', ...) instead.")  # fmt: skip
        tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        for table in tables:
            if any(not isinstance(hook, Observer) for hook in getattr(module, table).values()):
                refuse(path, what, "has a hook, which may do anything.", "Remove the hook (or the wrapper that adds it).")
        if "forward" in vars(module):
            refuse(path, what, "has had its forward replaced on the instance.", "Make it a module with a rule.")
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            refuse(name, "a parameter", "has a hook on its gradient.", "Remove the hook.")
    held = torch.nn.modules.module
    if any(getattr(held, f"_global_{t}", None) for t in tables):
        refuse("torch", "a global hook", "is registered, which may do anything.", "Remove it.")


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


def _trace(root: _Root) -> fx.Graph:
    with _undisturbed():
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()  # type: ignore[union-attr]
        try:
            graph = _Tracer().trace(root)
        except DPLipError:
            raise
        except TraceError as wrong:
            refuse("the model", "its forward", f"depends on the data in its control flow ({wrong}).",
                   "Write it without if, while, len() or int() on values.")  # fmt: skip
        except Exception as wrong:
            refuse("the model", "its forward", f"cannot be traced by torch.fx ({type(wrong).__name__}: {wrong}).",
                   "Write it with layers and torch functions of its input alone.")  # fmt: skip
        after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()  # type: ignore[union-attr]
    if not torch.equal(before[0], after[0]) or before[1:] != after[1:]:
        refuse("the model", "its forward", "draws random numbers outside a layer with a rule.", "Use nn.Dropout.")
    if sum(n.op == "placeholder" for n in graph.nodes) != 1:
        refuse("the model", "its forward", "takes several inputs.", "Give it one tensor.")
    return graph


def _check_rules(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
    """Refuse by name what has no rule, before anything is run."""
    for node in graph.nodes:
        if node.op == "call_module":
            module = modules[str(node.target)]
            if module_rule(module) is None:
                what = type(module).__name__
                reason, remedy = next(
                    (v for k, v in REMEDIES.items() if what.startswith(k)),
                    ("has no rule that bounds it.", "Use another layer, or write a rule: @dplip.rule(...)."),
                )
                if _shadows_rule(module):
                    reason = "changes a layer that has a rule, so that the rule may no longer hold."
                refuse(_path(node), what, reason, remedy)
        elif node.op in ("call_function", "call_method"):
            target = _target(node)
            if target is None:
                refuse(_path(node), f"Tensor.{node.target}", "is not a tensor method.", "Use another operation.")
            known = rule_of(target) is not None or target in FOLDABLE or target in _SHAPE_READERS
            if not known and not _reads_shape(node):
                name = getattr(target, "__name__", str(target))
                reason = "changes a value in place." if name.endswith("_") and not name.endswith("__") else "has no rule that bounds it."
                refuse(_path(node), name, reason, "Use another operation, or write a rule: @dplip.rule(...).")


_SHAPE_READERS = {torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel, operator.floordiv, operator.mod}


def _reads_shape(node: fx.Node) -> bool:
    return node.target is getattr and node.args[1] in ("shape", "ndim", "dtype", "device")


def _probe(
    root: _Root, graph: fx.Graph, input_shape: tuple[int, ...]
) -> tuple[dict[fx.Node, Any], dict[fx.Node, _Step]]:
    """Run the traced graph on two batch sizes, and compare with the model itself: shapes, numbers, and agreement."""
    parameter = next((p for p in root.parameters() if p.is_floating_point()), None)
    like = {} if parameter is None else {"dtype": parameter.dtype, "device": parameter.device}
    module = fx.GraphModule(root, graph)
    records = []
    with _undisturbed(), torch.no_grad():
        for batch in (2, 3):
            torch.manual_seed(batch)
            x = torch.randn(batch, *input_shape, **like)  # type: ignore[call-overload]
            recorder = _Recorder(module)
            results = []
            for run in (recorder.run, root):
                torch.manual_seed(10 + batch)
                try:
                    results.append(run(x.clone()))
                except DPLipError:
                    raise
                except Exception as wrong:
                    raise ConfigurationError(
                        f"input_shape={input_shape}: the model does not run on a batch of such examples "
                        f"({type(wrong).__name__}: {wrong}). Give the shape of one example, without the batch."
                    ) from None
            same = all(isinstance(r, Tensor) for r in results) and results[0].shape == results[1].shape
            if not same or not torch.allclose(results[0], results[1], rtol=1e-4, atol=1e-5, equal_nan=True):
                refuse("the model", "its forward", "gives other results than its trace (state, randomness or "
                       "side effects).", "Make it a pure function of its input that returns one tensor.")  # fmt: skip
            records.append(recorder.seen)
    values: dict[fx.Node, Any] = {}
    steps: dict[fx.Node, _Step] = {}
    fed = {n for n in graph.nodes if n.op == "placeholder"}
    for node in graph.nodes:
        if node.op == "output":
            continue
        two, three = records[0][node], records[1][node]
        shape = None
        if not isinstance(two, (Tensor, tuple, list)) or isinstance(two, torch.Size):
            values[node] = two if two == three else BATCH
        elif node in fed or any(n in fed for n in node.all_input_nodes):
            fed.add(node)
            shape = _example_shape(node, two, three)
        steps[node] = _Step(node, _path(node), shape)
    return values, steps


def _example_shape(node: fx.Node, two: Any, three: Any) -> Any:
    if isinstance(two, (tuple, list)):
        return tuple(_example_shape(node, a, b) for a, b in zip(two, three, strict=True))
    a, b = tuple(two.shape), tuple(three.shape)
    if not a or a[0] != 2 or b[0] != 3 or a[1:] != b[1:]:
        refuse(_path(node), str(node.target), f"turns batches of 2 and 3 examples into shapes {a} and {b}, so examples may "
               "mix.", "Keep the batch as the first axis: x.flatten(1) or x.view(x.size(0), -1).")  # fmt: skip
    return a[1:]


class _Recorder(fx.Interpreter):
    """Runs the graph and keeps what each node gave."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.seen: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.seen[n] = super().run_node(n)
        return self.seen[n]


def _attribute(root: nn.Module, target: str) -> Any:
    value: Any = root
    for part in target.split("."):
        value = getattr(value, part)
    return value


def _target(node: fx.Node) -> Any:
    return getattr(torch.Tensor, str(node.target), None) if node.op == "call_method" else node.target


def _path(node: fx.Node) -> str:
    if node.op == "call_module":
        path = str(node.target)
    else:
        stack = node.meta.get("nn_module_stack") or {}
        path = next(reversed([str(v[0] if isinstance(v, tuple) else k) for k, v in stack.items()]), "model")
    return path.removeprefix("model").removeprefix(".") or "the model"


def _describe(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    if node.op == "call_module":
        return type(modules[str(node.target)]).__name__
    return getattr(_target(node), "__name__", str(node.target))


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def _depends(value: Any) -> bool:
    return isinstance(value, Norms) or (isinstance(value, tuple) and any(isinstance(v, Norms) for v in value))


def _plus(a: Any, b: Any) -> Any:
    return tuple(x + y for x, y in zip(a, b, strict=True)) if isinstance(a, tuple) else a + b
