"""The walk of norms forward through a model's torch.fx graph, and of cotangent norms back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn

from dplip import rules
from dplip.errors import ConfigurationError, DPLipError, UnboundedOperationError
from dplip.norms import Norms
from dplip.propagation.graph import flat
from dplip.propagation.probe import BATCH, Operation
from dplip.propagation.traced_model import TracedModel
from dplip.rules import RULES, refuse
from dplip.rules.registry import signature

ModelPullback = Callable[[Norms], tuple[Norms, dict[str, Norms]]]

Apply = Callable[[Operation, Any, Any], tuple[Any, Any]]
"""An interpreter of one operation: ``(operation, args, kwargs) -> (output, pullback)``, with bounds in place of the
values that depend on the input; ``pullback(cotangent)`` returns the nodes of these values, their cotangents, and the
cotangents of parameters."""


def propagate(
    model: nn.Module, input_shape: tuple[int, ...], input_norms: Norms | None = None
) -> tuple[Norms, ModelPullback]:
    """Bound the norms of one example's output, and of its cotangents on the way back.

    Args:
        model: a module, in the mode (train or eval) that the bounds are for; it is not run on data and not changed.
        input_shape: shape of one example, without the batch.
        input_norms: bounds of one example's input; None: no bound is known.

    Returns:
        ``(output, pullback)``: the norms of one example's output, and a function from the norms of the cotangent of
        that output to ``(norms of the input's cotangent, {parameter name: norms of its cotangent})``.

    Raises:
        UnboundedOperationError: an operation of the model has no rule, or a rule that may not hold for it.

    Guarantee: for every input within ``input_norms`` and every cotangent within the given norms, for the present
    weights, in exact arithmetic; the operator norms carry slack for float64 rounding.
    """
    return Walk(model, input_shape)(input_norms)


class Walk(TracedModel):
    """A traced model that can be walked again after its weights have changed.

    Norms go through each operation by its rule, or by the ``apply`` of another interpreter.

    Args:
        model, input_shape: as for :func:`propagate`.
    """

    def __call__(self, input_norms: Norms | None = None, apply: Apply | None = None) -> tuple[Norms, ModelPullback]:
        """Walk forward with the present weights; see :func:`propagate`."""
        values, pullbacks = self.forward(input_norms, apply)
        output = self.output()
        result = values[output]
        if not isinstance(result, Norms):
            raise UnboundedOperationError("The model's output does not depend on its input, or is not one tensor.")

        def pullback(cotangent: Norms) -> tuple[Norms, dict[str, Norms]]:
            if cotangent.shape != result.shape:
                raise ConfigurationError(
                    f"cotangent of shape {cotangent.shape}: the model's output has shape {result.shape}."
                )
            cotangents, parameters = self.backward(pullbacks, {output: cotangent})
            return cotangents[self.start()], parameters

        return result, pullback

    def cotangents(self, seeds: Mapping[fx.Node, Norms]) -> dict[fx.Node, Any]:
        """The cotangent norms, for every input, of all nodes that the nodes of ``seeds`` depend on."""
        return self.backward(self.forward()[1], seeds)[0]

    def forward(
        self, input_norms: Norms | None = None, apply: Apply | None = None
    ) -> tuple[dict[fx.Node, Any], dict[fx.Node, Any]]:
        """The value of every node, and the pullback of every operation that depends on the input."""
        x = Norms(self.input_shape) if input_norms is None else input_norms
        if not isinstance(x, Norms):
            raise ConfigurationError(f"input_norms={x!r}: give Norms(input_shape, l2=...), or None for no bound.")
        if x.shape != self.input_shape:
            raise ConfigurationError(f"input_norms of shape {x.shape}, but input_shape={self.input_shape}.")
        pullbacks: dict[fx.Node, Any] = {}

        def applied(operation: Operation, args: Any, kwargs: Any) -> Any:
            output, pullbacks[operation.node] = (apply or self.apply)(operation, args, kwargs)
            return output

        values = self.run(x, applied)
        self.refuse_fault()  # last, since a rule's refusal names the operation
        return values, pullbacks

    def backward(
        self, pullbacks: Mapping[fx.Node, Any], seeds: Mapping[fx.Node, Any], of_parameters: bool = True
    ) -> tuple[dict[fx.Node, Any], dict[str, Norms]]:
        """The cotangents of all nodes that the seeds depend on, and of the parameters by name, if asked for."""
        cotangents = dict(seeds)
        parameters: dict[str, Norms] = {}
        for node in reversed(list(pullbacks)):
            if node in cotangents:
                sources, inputs, named = pullbacks[node](cotangents[node])
                if of_parameters:
                    self._collect(parameters, node, named)
                for source, v in zip(sources, inputs, strict=True):
                    cotangents[source] = _plus(cotangents[source], v) if source in cotangents else v
        cotangents.setdefault(self.start(), Norms.zero(self.input_shape))
        return cotangents, parameters

    def apply(self, operation: Operation, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The norms of an operation's output by its rule, and its pullback."""
        node = operation.node
        subject, function = self.subject(operation)
        rule = RULES.of(function)
        if rule is None:  # a function that is known for constants only
            operation.refuse("has no rule that bounds it.", "Use another operation, or write a rule: @dplip.rule(...).")
        if any(a is BATCH for a in flat((args, kwargs))) and rule not in (rules.shape.reshape, rules.shape.expand):
            operation.refuse("depends on the size of the batch.", "Use sizes of one example.")
        try:
            bound = signature(rule).bind(subject, *args, **kwargs)
        except TypeError as wrong:
            operation.refuse(f"is called in a way its rule does not know ({wrong}).", "Use the plain form of the call.")
        if bound.arguments.get("inplace") or getattr(subject, "inplace", False):
            operation.refuse("changes its input in place.", "Use inplace=False.")
        # The rule returns cotangents in the order of its own signature, which may differ from the call's order.
        read = flat(signature(rule).bind(subject, *node.args, **node.kwargs).arguments)
        sources = [n for n in read if isinstance(n, fx.Node) and self.shape(n) is not None]
        try:
            output, inner = rule(*bound.args, **bound.kwargs)
        except UnboundedOperationError as refused:
            if str(refused).startswith(operation.path):
                raise
            raise UnboundedOperationError(f"{operation.path}: {refused}") from None
        shape = tuple(o.shape for o in output) if isinstance(output, tuple) else output.shape
        if shape != operation.shape:
            raise DPLipError(
                f"{operation.path}: the rule of {operation.name} says that one example's output has shape "
                f"{shape}, but it has {operation.shape}. Correct the rule."
            )

        def pullback(cotangent: Any) -> tuple[list[fx.Node], list[Any], Any]:
            inputs, named = inner(cotangent)
            return sources, [inputs] if isinstance(inputs, Norms) else list(inputs), named

        return output, pullback

    def _collect(self, parameters: dict[str, Norms], node: fx.Node, named: Mapping[str | Tensor, Norms]) -> None:
        """Add one call's parameter cotangents to ``parameters``, where those of a shared parameter add up."""
        module = self.module(node)
        for key, norms in named.items():
            name = self.name_of(_parameter(module, key) if module is not None and isinstance(key, str) else key)
            if name is not None:
                parameters[name] = parameters[name] + norms if name in parameters else norms
        for key, parameter in () if module is None else module.named_parameters():
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


def _plus(a: Any, b: Any) -> Any:
    return tuple(x + y for x, y in zip(a, b, strict=True)) if isinstance(a, tuple) else a + b
