"""A traced model: its graph, and the checks that the graph still computes what the model does."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, fx, nn

from dplip.errors import UnboundedOperationError
from dplip.propagation.checks import FOLDABLE, bare, check_modules, check_rules
from dplip.propagation.graph import Root, attribute, flat, target_of
from dplip.propagation.guards import guards_of
from dplip.propagation.probe import BATCH, Operation, probe
from dplip.propagation.public_rows import PublicRows, agree
from dplip.propagation.trace import trace
from dplip.rules import RULES, SUMMATIONS, SUMMED, Call, Summation, refuse
from dplip.rules.linear import AFFINE

M = TypeVar("M", bound="TracedModel")


class TracedModel:
    """A model with its torch.fx graph, which norms, boxes or roundings can be propagated through.

    Args:
        model: a module, in the mode (train or eval) that the bounds are for; it is not run on data and not changed.
        input_shape: shape of one example, without the batch.

    Attributes:
        guards: the state that the trace depends on (:func:`dplip.propagation.guards.guards_of`).
        graph_module: the graph, as a module that computes what the model does.
    """

    def __init__(self, model: nn.Module, input_shape: tuple[int, ...]) -> None:
        self.model = model
        self.input_shape = (input_shape,) if isinstance(input_shape, int) else tuple(input_shape)
        self._root = Root(model)
        for _ in range(2):  # the first run may fill caches
            self.guards = guards_of(model)
            self._trace()
            if self.current():
                break
        else:
            refuse(
                "the model", "its forward", "changes the model's attributes.", "Make it a pure function of its input."
            )
        self._bare: Any = None

    def _trace(self) -> None:
        check_modules(self.model)
        with bare(self._root):
            graph = trace(self._root)
        self._modules = dict(self._root.named_modules(remove_duplicate=False))
        self._names = {id(p): name for name, p in self.model.named_parameters()}
        check_rules(graph, self._modules)
        with bare(self._root):
            self._probe = probe(self._root, graph, self.input_shape)
        self.graph_module = fx.GraphModule(self._root, graph)
        self._rows = PublicRows(self._root, self.input_shape)

    def without_weights(self: M) -> M:
        """The same model with weights and buffers on the meta device, which have shapes and no values.

        Its operator norms and norms of constants are infinite, and a rule that reads a number off a tensor raises. So
        its finite bounds hold for all weights and buffers. The model is made once and kept, since a loss whose
        attributes follow a schedule needs it at every step.
        """
        if self._bare is None:
            held = [t for m in self._root.modules() for t in flat(list(vars(m).values())) if isinstance(t, Tensor)]
            memo: dict[int, Any] = {id(t): torch.empty_like(t, device="meta") for t in held}
            for p in self._root.parameters():
                memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
            copied = copy.copy(self)
            copied._root = copy.deepcopy(self._root, memo)
            copied._modules = dict(copied._root.named_modules(remove_duplicate=False))
            copied._names = {id(memo[key]): name for key, name in self._names.items()}
            self._bare = copied
        return cast(M, self._bare)

    # ------------------------------------------------------------------------------------------------ still the model

    def current(self, rows: list[Tensor] | None = None) -> bool:
        """Whether the guards, and the results on the public rows (``rows``, if given), are unchanged; refuses hooks."""
        check_modules(self.model)
        if guards_of(self.model) != self.guards:
            return False
        return self.explains(self._rows.of_model() if rows is None else rows)

    def explains(self, made: list[Tensor] | None) -> bool:
        """Whether the trace gives the model's results ``made`` on the public rows, with the present weights."""
        return made is None or agree(made, self._rows.of(self.graph_module, gradients=len(made) > 1))

    @property
    def draws(self) -> bool:
        """Whether the model may draw random numbers in training, which a trace in evaluation mode cannot exclude."""
        return self._probe.draws or not self.model.training

    def refuse_surrogates(self) -> None:
        """Refuse layers whose backward pass is not their derivative."""
        for name, module in self.model.named_modules():
            if getattr(module, "surrogate", False) and module.training:
                refuse(
                    name,
                    type(module).__name__,
                    "has in training mode a backward pass that is not its derivative.",
                    "Call model.eval() first.",
                )

    def refuse_chance(self) -> None:
        """Refuse a model that draws random numbers, so that an input has no single prediction."""
        if self._probe.draws:
            refuse(
                "the model",
                "its forward",
                "draws random numbers in evaluation mode, so that one input has several predictions.",
                "Use nn.Dropout, or F.dropout(x, p, self.training), which do nothing then.",
            )

    def refuse_fault(self) -> None:
        """Refuse a model that mixed examples in the probe, or differed from its trace."""
        if self._probe.fault:
            refuse("the model", *self._probe.fault)

    # ------------------------------------------------------------------------------------------------ the graph

    def start(self) -> fx.Node:
        """The node of the input."""
        return next(n for n in self.graph_module.graph.nodes if n.op == "placeholder")

    def output(self) -> fx.Node:
        """The node of the model's output."""
        out = next(n for n in self.graph_module.graph.nodes if n.op == "output").args[0]
        if not isinstance(out, fx.Node):
            raise UnboundedOperationError("The model returns several values. Return one tensor: the scores.")
        return out

    def head(self) -> tuple[nn.Linear, fx.Node] | None:
        """The linear layer that ends the model, and the node of its input; None without one."""
        node = self.output()
        while isinstance(self.module(node), nn.Identity):
            node = node.all_input_nodes[0]
        layer = self.module(node)
        if layer is None or len(self.shape(node)) != 1 or RULES.of_module(layer) not in AFFINE:
            return None
        return cast(nn.Linear, layer), node.all_input_nodes[0]

    def shape(self, node: fx.Node) -> Any:
        """The shape of one example's value at a node; None where it does not depend on the input."""
        return self._probe.operations[node].shape

    def calls(self) -> list[Operation]:
        """The operations that depend on the input, in order, without the input itself."""
        return [o for n, o in self._probe.operations.items() if o.shape is not None and n.op.startswith("call_")]

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls, if it calls one."""
        return self._modules[str(node.target)] if node.op == "call_module" else None

    def name_of(self, parameter: Any) -> str | None:
        """The name of a trainable parameter of the model; None for anything else."""
        return self._names.get(id(parameter)) if isinstance(parameter, Tensor) and parameter.requires_grad else None

    def subject(self, operation: Operation) -> tuple[Any, Any]:
        """The first argument of an operation's rule (a module or a :class:`Call`), and the function that runs.

        The function is None where a subclass has changed what its inherited ``forward`` computes.
        """
        module = self.module(operation.node)
        if module is not None:
            return module, None if RULES.of_module(module) is None else type(module).forward
        target = target_of(operation.node)
        return Call(target, operation.shape, operation.path), target

    def run(self, x: Any, apply: Callable[[Operation, Any, Any], Any]) -> dict[fx.Node, Any]:
        """The value of every node, for the value x of the input.

        ``apply(operation, args, kwargs)`` gives the value of a call with an argument that depends on the input (one of
        the type of x, or a tuple of them); a call with constants only is evaluated.
        """
        kind = type(x)
        values: dict[fx.Node, Any] = {}
        for node, operation in self._probe.operations.items():
            if node.op == "placeholder":
                values[node] = x
            elif node.op == "get_attr":
                values[node] = attribute(self._root, str(node.target))
            elif node in self._probe.values:
                values[node] = self._probe.values[node]
            else:
                args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
                depends = any(isinstance(a, kind) for a in flat((args, kwargs)))
                values[node] = (apply if depends else self._fold)(operation, args, kwargs)
        return values

    def _fold(self, operation: Operation, args: Any, kwargs: Any) -> Any:
        arguments, target = list(flat((args, kwargs))), target_of(operation.node)
        if any(isinstance(a, Tensor) and a.requires_grad for a in arguments):
            operation.refuse(
                "computes with a trainable parameter before it meets an example.",
                "Use the parameter itself, or freeze it.",
            )
        if target not in FOLDABLE:
            operation.refuse("is not known to be a pure function of constants.", "Compute it once, as a buffer.")
        if any(a is BATCH for a in arguments):
            operation.refuse("depends on the size of the batch.", "Use sizes of one example.")
        return target(*args, **kwargs)

    @functools.cached_property
    def summations(self) -> dict[str, Summation]:
        """How the gradient of each trainable parameter is summed over a batch."""
        found: dict[str, Summation] = {}
        for operation in self.calls():
            node, shape, module = operation.node, operation.shape, self.module(operation.node)
            read = [attribute(self._root, str(n.target)) for n in node.all_input_nodes if n.op == "get_attr"]
            rule = RULES.of(target_of(node)) if module is None else RULES.of_module(module)
            plain = Summation(math.prod(s for s in flat([shape]) if isinstance(s, int)))
            for p in read if module is None else module.parameters():
                name = self.name_of(p)
                if name is not None:
                    known = None if rule is None else SUMMATIONS.get(rule)
                    use = plain if known is None else known(tuple(p.shape), shape)
                    summed = module is not None and type(module).forward in SUMMED
                    if use.blocked and not summed:  # a subclass with the rule but without the blocked sums
                        use = plain
                    found[name] = found[name] + use if name in found else use
        return found
