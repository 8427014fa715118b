"""The walk over a model: norms forward, then the pullback of cotangent norms, over its torch.fx graph."""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from dplip import rules
from dplip.errors import ConfigurationError, DPLipError, UnboundedOperationError
from dplip.norms import Norms
from dplip.propagation.checks import FOLDABLE, bare, check_modules, check_rules
from dplip.propagation.graph import Root, attribute, describe, flat, target_of
from dplip.propagation.guards import fingerprint
from dplip.propagation.probe import BATCH, Step, probe
from dplip.propagation.public_rows import PublicRows, agree
from dplip.propagation.trace import trace
from dplip.rules import Call
from dplip.rules.linear import AFFINE
from dplip.rules.registry import SUMMATIONS, SUMMED, Summation, module_rule, refuse, rule_of

ModelPullback = Callable[[Norms], tuple[Norms, dict[str, Norms]]]


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


class Walk:
    """A traced model that can be walked again whenever its weights have changed.

    Args:
        model, input_shape: as for :func:`propagate`.
    """

    def __init__(self, model: nn.Module, input_shape: tuple[int, ...]) -> None:
        self.model = model
        self.input_shape = (input_shape,) if isinstance(input_shape, int) else tuple(input_shape)
        self._root = Root(model)
        for _ in range(2):  # the first run may fill caches
            self.fingerprint = fingerprint(model)
            self._trace()
            if self.current():
                break
        else:
            refuse(
                "the model", "its forward", "changes the model's attributes.", "Make it a pure function of its input."
            )
        self._bare: Walk | None = None

    def _trace(self) -> None:
        check_modules(self.model)
        with bare(self._root):
            self._graph = trace(self._root)
        self._modules = dict(self._root.named_modules(remove_duplicate=False))
        self._names = {id(p): name for name, p in self.model.named_parameters()}
        check_rules(self._graph, self._modules)
        with bare(self._root):
            self._probe = probe(self._root, self._graph, self.input_shape)
        self._module = fx.GraphModule(self._root, self._graph)
        self._rows = PublicRows(self._root, self.input_shape)

    def without_weights(self) -> Walk:
        """The same walk over weights and buffers that have shapes and no values.

        Operator norms and norms of constants are then infinite, and a rule that asks a tensor for a number raises
        (torch refuses it on the meta device). So whatever this walk bounds is bounded for all weights and buffers.
        It is made once, since it depends on none: a loss whose attributes follow a schedule asks at every step.
        """
        if self._bare is not None:
            return self._bare
        held = [t for m in self._root.modules() for t in flat(list(vars(m).values())) if isinstance(t, Tensor)]
        memo: dict[int, Any] = {id(t): torch.empty_like(t, device="meta") for t in held}
        for p in self._root.parameters():
            memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
        bare = copy.copy(self)
        bare._root = copy.deepcopy(self._root, memo)
        bare._modules = dict(bare._root.named_modules(remove_duplicate=False))
        bare._names = {id(memo[key]): name for key, name in self._names.items()}
        self._bare = bare
        return bare

    def refuse_surrogates(self) -> None:
        """Refuse layers whose backward pass is not their derivative, for what rests on derivatives."""
        for name, module in self.model.named_modules():
            if getattr(module, "surrogate", False) and module.training:
                refuse(
                    name,
                    type(module).__name__,
                    "has in training mode a backward pass that is not its derivative.",
                    "Call model.eval() first.",
                )

    def refuse_chance(self) -> None:
        """Refuse a model that draws random numbers, for what is said of one prediction for each input."""
        if self._probe.draws:
            refuse(
                "the model",
                "its forward",
                "draws random numbers in evaluation mode, so that one input has several predictions.",
                "Use nn.Dropout, or F.dropout(x, p, self.training), which do nothing then.",
            )

    @property
    def draws(self) -> bool:
        """Whether the model may draw random numbers in training: a trace in evaluation mode need not tell."""
        return self._probe.draws or not self.model.training

    def current(self, rows: list[Tensor] | None = None) -> bool:
        """Whether the model still is what was traced, and made the public rows that are given; refuses new hooks."""
        check_modules(self.model)
        if fingerprint(self.model) != self.fingerprint:
            return False
        return self.explains(self._rows.of_model() if rows is None else rows)

    def explains(self, made: list[Tensor] | None) -> bool:
        """Whether the trace makes of the public rows, with the present weights, what the model made of them."""
        return made is None or agree(made, self._rows.of_trace(self._module, gradients=len(made) > 1))

    def __call__(self, input_norms: Norms | None = None) -> tuple[Norms, ModelPullback]:
        """Walk forward with the present weights; see :func:`propagate`."""
        values, pullbacks = self._forward(input_norms)
        output = self.output()
        result = values[output]
        if not isinstance(result, Norms):
            raise UnboundedOperationError("The model's output does not depend on its input, or is not one tensor.")

        def pullback(cotangent: Norms) -> tuple[Norms, dict[str, Norms]]:
            if cotangent.shape != result.shape:
                raise ConfigurationError(
                    f"cotangent of shape {cotangent.shape}: the model's output has shape {result.shape}."
                )
            cotangents, parameters = self._backward(pullbacks, values, {output: cotangent})
            return cotangents[self.start()], parameters

        return result, pullback

    def cotangents(self, seeds: Mapping[fx.Node, Norms]) -> dict[fx.Node, Any]:
        """The norms of the cotangent of every value that the given ones depend on, whatever the input."""
        values, pullbacks = self._forward(None)
        return self._backward(pullbacks, values, dict(seeds))[0]

    def head(self) -> tuple[nn.Linear, fx.Node] | None:
        """The linear layer that ends the model, and the value that it is given; None without one."""
        node = self.output()
        while isinstance(self.module(node), nn.Identity):
            node = node.all_input_nodes[0]
        layer = self.module(node)
        if layer is None or len(self._probe.steps[node].shape) != 1:
            return None
        if module_rule(layer) not in AFFINE:
            return None
        return cast(nn.Linear, layer), node.all_input_nodes[0]

    def output(self) -> fx.Node:
        """The node of the model's output."""
        out = next(n for n in self._graph.nodes if n.op == "output").args[0]
        if not isinstance(out, fx.Node):
            raise UnboundedOperationError("The model returns several values. Return one tensor: the scores.")
        return out

    def shape(self, node: fx.Node) -> Any:
        """The shape of one example's value at a node."""
        return self._probe.steps[node].shape

    def start(self) -> fx.Node:
        """The node of the input."""
        return next(n for n in self._graph.nodes if n.op == "placeholder")

    def run(self, x: Any, apply: Callable[[Step, Any, Any], Any]) -> dict[fx.Node, Any]:
        """The value of every node, from that of the input; ``apply(step, args, kwargs)`` answers for each call that is
        given a value which depends on the input (one of the type of x, or a tuple of them)."""
        kind = type(x)
        values: dict[fx.Node, Any] = {}
        for node, step in self._probe.steps.items():
            if node.op == "placeholder":
                values[node] = x
            elif node.op == "get_attr":
                values[node] = attribute(self._root, str(node.target))
            elif node in self._probe.values:
                values[node] = self._probe.values[node]
            else:
                args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
                depends = any(isinstance(a, kind) for a in flat((args, kwargs)))
                values[node] = (apply if depends else self._fold)(step, args, kwargs)
        return values

    def calls(self) -> list[Step]:
        """The steps that depend on the input, in order, but for the input itself."""
        return [s for n, s in self._probe.steps.items() if s.shape is not None and n.op.startswith("call_")]

    @functools.cached_property
    def summations(self) -> dict[str, Summation]:
        """How the gradient of each trainable parameter is summed over a batch."""
        found: dict[str, Summation] = {}
        for step in self.calls():
            module = self.module(step.node)
            read = [attribute(self._root, str(n.target)) for n in step.node.all_input_nodes if n.op == "get_attr"]
            function = rule_of(target_of(step.node)) if module is None else module_rule(module)
            outputs = [s for s in flat([step.shape]) if isinstance(s, int)]
            for p in read if module is None else module.parameters():
                name = self._names.get(id(p))
                if name is not None and p.requires_grad:
                    known = None if function is None else SUMMATIONS.get(function)
                    use = plain = Summation(math.prod(outputs))
                    if known is not None:
                        use = known(tuple(p.shape), step.shape)
                    summed = module is not None and type(module).forward in SUMMED
                    if use.blocked and not summed:  # a class with the rule, and not the sums
                        use = plain
                    found[name] = found[name] + use if name in found else use
        return found

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls, if it calls one."""
        return self._modules[str(node.target)] if node.op == "call_module" else None

    def subject(self, step: Step) -> tuple[Any, Any]:
        """What a rule is told beside the arguments (a module, or a :class:`Call`), and the function that runs.

        The function is None where a subclass has changed what its inherited ``forward`` computes.
        """
        module = self.module(step.node)
        if module is not None:
            return module, None if module_rule(module) is None else type(module).forward
        target = target_of(step.node)
        return Call(target, step.shape, step.path), target

    def describe(self, step: Step) -> str:
        """What a step calls, for messages."""
        return describe(step.node, self._modules)

    def _forward(self, input_norms: Norms | None) -> tuple[dict[fx.Node, Any], dict[fx.Node, Any]]:
        x = Norms(self.input_shape) if input_norms is None else input_norms
        if not isinstance(x, Norms):
            raise ConfigurationError(f"input_norms={x!r}: give Norms(input_shape, l2=...), or None for no bound.")
        if x.shape != self.input_shape:
            raise ConfigurationError(f"input_norms of shape {x.shape}, but input_shape={self.input_shape}.")
        pullbacks: dict[fx.Node, Any] = {}

        def apply(step: Step, args: Any, kwargs: Any) -> Any:
            output, pullbacks[step.node] = self._apply(step, args, kwargs)
            return output

        values = self.run(x, apply)
        if self._probe.fault:  # whatever the rules say; last, since a rule that refuses knows the place
            refuse("the model", *self._probe.fault)
        return values, pullbacks

    def _apply(self, step: Step, args: Any, kwargs: Any) -> tuple[Any, Any]:
        node = step.node
        subject, target = self.subject(step)
        function = rule_of(target)
        if function is None:  # a function that is known for constants alone
            refuse(
                step.path,
                describe(node, self._modules),
                "has no rule that bounds it.",
                "Use another operation, or write a rule: @dplip.rule(...).",
            )
        if any(a is BATCH for a in flat((args, kwargs))) and function not in (rules.shape.reshape, rules.shape.expand):
            refuse(
                step.path,
                describe(node, self._modules),
                "depends on the size of the batch.",
                "Use sizes of one example.",
            )
        try:
            bound = inspect.signature(function).bind(subject, *args, **kwargs)
        except TypeError as wrong:
            refuse(
                step.path,
                describe(node, self._modules),
                f"is called in a way its rule does not know ({wrong}).",
                "Use the plain form of the call.",
            )
        if bound.arguments.get("inplace") or getattr(subject, "inplace", False):
            refuse(step.path, describe(node, self._modules), "changes its input in place.", "Use inplace=False.")
        # The rule answers for its arguments in the order of its own signature, whatever that of the call.
        arguments = inspect.signature(function).bind(subject, *node.args, **node.kwargs).arguments
        sources = [n for n in flat(arguments) if isinstance(n, fx.Node)]
        try:
            output, inner = function(*bound.args, **bound.kwargs)
        except UnboundedOperationError as refused:
            if str(refused).startswith(step.path):
                raise
            raise UnboundedOperationError(f"{step.path}: {refused}") from None
        shape = tuple(o.shape for o in output) if isinstance(output, tuple) else output.shape
        if shape != step.shape:
            raise DPLipError(
                f"{step.path}: the rule of {describe(node, self._modules)} says that one example's output has shape "
                f"{shape}, but it has {step.shape}. Correct the rule."
            )
        return output, lambda cotangent: (sources, *inner(cotangent))

    def _fold(self, step: Step, args: Any, kwargs: Any) -> Any:
        tensors = [a for a in flat((args, kwargs)) if isinstance(a, Tensor)]
        target = target_of(step.node)
        what = describe(step.node, self._modules)
        if any(t.requires_grad for t in tensors):
            refuse(
                step.path,
                what,
                "computes with a trainable parameter before it meets an example.",
                "Use the parameter itself, or freeze it.",
            )
        if target not in FOLDABLE:
            refuse(
                step.path,
                what,
                "is not known to be a pure function of constants.",
                "Compute it once, as a buffer.",
            )
        if any(a is BATCH for a in flat((args, kwargs))):
            refuse(step.path, what, "depends on the size of the batch.", "Use sizes of one example.")
        return target(*args, **kwargs)

    def _backward(
        self, pullbacks: Mapping[fx.Node, Any], values: Mapping[fx.Node, Any], cotangents: dict[fx.Node, Any]
    ) -> tuple[dict[fx.Node, Any], dict[str, Norms]]:
        parameters: dict[str, Norms] = {}
        for node in reversed(list(pullbacks)):
            cotangent = cotangents.get(node)
            if cotangent is None:
                continue
            sources, inputs, named = pullbacks[node](cotangent)
            self._collect(parameters, node, named)
            sources = [n for n in sources if _depends(values[n])]
            inputs = (inputs,) if isinstance(inputs, Norms) else tuple(inputs)
            for source, v in zip(sources, inputs, strict=True):
                cotangents[source] = _plus(cotangents[source], v) if source in cotangents else v
        cotangents.setdefault(self.start(), Norms.zero(self.input_shape))
        return cotangents, parameters

    def _collect(self, parameters: dict[str, Norms], node: fx.Node, named: Mapping[str | Tensor, Norms]) -> None:
        """Add one call's parameter cotangents to the model's: a shared parameter's add up."""
        module = self._modules[str(node.target)] if node.op == "call_module" else None
        for key, norms in named.items():
            tensor = _parameter(module, key) if module is not None and isinstance(key, str) else key
            name = self._names.get(id(tensor))
            if name is not None and isinstance(tensor, Tensor) and tensor.requires_grad:
                parameters[name] = parameters[name] + norms if name in parameters else norms
        if module is not None:
            for key, parameter in module.named_parameters():
                if parameter.requires_grad and key not in named:
                    refuse(
                        str(node.target).removeprefix("model."),
                        type(module).__name__,
                        f"has a parameter {key!r} that its rule does not bound.",
                        "Add it to what the rule's pullback returns, or freeze it.",
                    )


def _parameter(module: nn.Module, name: str) -> Tensor:
    found = dict(module.named_parameters(remove_duplicate=False)).get(name)
    if found is None:
        raise UnboundedOperationError(
            f"{type(module).__name__}: its {name} is not a parameter of its own, so its gradient goes where no bound "
            "follows. Make it an nn.Parameter."
        )
    return found


def _depends(value: Any) -> bool:
    return isinstance(value, Norms) or (isinstance(value, tuple) and any(isinstance(v, Norms) for v in value))


def _plus(a: Any, b: Any) -> Any:
    return tuple(x + y for x, y in zip(a, b, strict=True)) if isinstance(a, tuple) else a + b
