"""The probe of a traced graph: its shapes, numbers and agreement with the model, on batches of two sizes."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn

from dplip.errors import ConfigurationError, DPLipError, first_line
from dplip.norms.value_norms import is_real
from dplip.propagation.graph import Root, describe, path_of
from dplip.propagation.public_rows import AGREED, agree, other_values, rows_of, sent_back
from dplip.rules import refuse
from dplip.runtime.mixing import ROWS, close, mixes, seeded
from dplip.runtime.random_state import random_states, undisturbed


class _BatchDependent:
    """A placeholder for a number that depends on the batch size, which only shapes may use."""

    def __repr__(self) -> str:
        return "a number that depends on the batch size"


BATCH = _BatchDependent()


@dataclass(frozen=True)
class Operation:
    """One node of the traced graph, ready to run.

    Attributes:
        node: the node in the graph.
        path, name: its place in the model and the function it calls, for messages.
        shape: the shape of one example's output; None where the output does not depend on the input.
    """

    node: fx.Node
    path: str
    name: str
    shape: Any

    def refuse(self, reason: str, remedy: str) -> NoReturn:
        refuse(self.path, self.name, reason, remedy)


@dataclass(frozen=True)
class Probe:
    """The result of running a graph on batches of two sizes.

    Attributes:
        values: the values of nodes that are numbers.
        operations: the nodes, with the shape of one example's value.
        fault: (operation, reason, remedy) where the model mixes examples, or differs from its trace on other inputs.
        draws: whether random numbers were drawn.
    """

    values: dict[fx.Node, Any]
    operations: dict[fx.Node, Operation]
    fault: tuple[str, str, str] | None
    draws: bool


def probe(root: Root, graph: fx.Graph, input_shape: tuple[int, ...]) -> Probe:
    """Run the traced graph and the model on several batches, compare them, and record shapes and numbers."""
    module = fx.GraphModule(root, graph)
    records = []
    draws = False
    plain = torch.inference_mode(False), torch.autocast(rows_of(root, 1, input_shape).device.type, enabled=False)
    with undisturbed(), plain[0], plain[1], torch.enable_grad():
        for batch in (2, 3):
            recorder = _Recorder(module)
            x = rows_of(root, batch, input_shape)
            results = []
            for run in (recorder.run, root):
                torch.manual_seed(10 + batch)
                before = random_states()
                try:
                    results.append(run(x.clone()))  # a clone may be changed in place
                except DPLipError:
                    raise
                except Exception as wrong:
                    raise ConfigurationError(
                        f"input_shape={input_shape}: the model does not run on a batch of such examples, in numbers "
                        f"of {x.dtype} ({type(wrong).__name__}: {first_line(wrong)}). Give the shape of one example, "
                        "without the batch. (Of whole numbers, such as ids, norms are not propagated: let layers bound "
                        "their gradients, dplip.nn.bound_gradients(model), and give example= or a data set.)"
                    ) from None
                after = random_states()
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
            if not same or not agree(*(sent_back(result, x, root) for result in results)):
                refuse(
                    "the model",
                    "its backward",
                    "gives other gradients than its trace (a custom autograd function).",
                    "Put that in a module, and write a rule for it: @dplip.rule(...).",
                )
            records.append(recorder.seen)
        operations, values = _operations(module, *records)
        try:
            disagrees = None if _agree_elsewhere(module, root, input_shape) else _DISAGREEMENT
            fault = disagrees or (_MIXING if _examples_mix(root, input_shape, alone=not draws) else None)
        except Exception as wrong:
            reason = f"runs on 2 and 3 examples and not on others ({type(wrong).__name__}: {first_line(wrong)})."
            fault = "its forward", reason, "Treat each example by itself."
    return Probe(values, operations, fault, draws)


def _operations(module: fx.GraphModule, twos: Mapping[fx.Node, Any], threes: Mapping[fx.Node, Any]) -> tuple[Any, Any]:
    """The nodes with their shapes, and the values that are numbers, from runs on two and three examples."""
    values: dict[fx.Node, Any] = {}
    operations: dict[fx.Node, Operation] = {}
    modules = dict(module.named_modules(remove_duplicate=False))
    fed = {n for n in module.graph.nodes if n.op == "placeholder"}
    for node in module.graph.nodes:
        if node.op == "output":
            continue
        two, three = twos[node], threes[node]
        shape = None
        if not isinstance(two, (Tensor, tuple, list)) or isinstance(two, torch.Size):
            # A number computed from the batch size is BATCH even if both runs agree; an entry of a shape need not be.
            made = node.target is not operator.getitem and any(values.get(n) is BATCH for n in node.all_input_nodes)
            values[node] = BATCH if made or two != three else two
        elif node in fed or any(n in fed for n in node.all_input_nodes):
            fed.add(node)
            shape = _example_shape(node, two, three)
        operations[node] = Operation(node, path_of(node), describe(node, modules), shape)
    return operations, values


_DISAGREEMENT = (
    "its forward",
    "gives other results than its trace (state, randomness, side effects, or a number read off a weight or a global).",
    "Make it a pure function of its input, whose weights and buffers it uses as tensors.",
)

_MIXING = "its forward", "makes one example's output or gradient depend on another.", "Treat each by itself."


def _agree_elsewhere(module: nn.Module, root: Root, input_shape: tuple[int, ...]) -> bool:
    """Whether graph and model agree without gradients, on other batch sizes, and with other weights and buffers."""

    def same(count: int, scale: float) -> bool:
        results = []
        for run in (module, root):
            x = rows_of(root, count, input_shape, scale).detach()
            with seeded(x.device):
                results.append(run(x))
        return close(results[0], results[1], AGREED)

    with torch.no_grad():
        if not (same(1, 1e-2) and same(7, 30.0)):
            return False
        with torch.inference_mode():
            if not same(2, 1.0):
                return False
    with other_values(root):
        return same(2, 1.0)


def _examples_mix(root: Root, input_shape: tuple[int, ...], alone: bool) -> bool:
    small = math.prod(input_shape) <= 4096  # a larger batch finds more mixing and costs more
    x = rows_of(root, 33 if small else ROWS, input_shape).detach()
    return mixes(root, [x], [p for p in root.parameters() if p.requires_grad], alone)


def _own_functions(result: Tensor) -> Counter[str]:
    """The custom autograd functions in the graph of a result; a traced model's graph has only those inside layers."""
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
            path_of(node),
            str(node.target),
            f"gives values of type {two.dtype}, {two.layout}, whose arithmetic the bounds do not cover.",
            "Compute in float32.",
        )
    a, b = tuple(two.shape), tuple(three.shape)
    if not a or a[0] != 2 or b[0] != 3 or a[1:] != b[1:]:
        refuse(
            path_of(node),
            str(node.target),
            f"turns batches of 2 and 3 examples into shapes {a} and {b}, so examples may mix.",
            "Keep the batch as the first axis: x.flatten(1) or x.view(x.size(0), -1).",
        )
    return a[1:]


class _Recorder(fx.Interpreter):
    """An interpreter that keeps the value of each node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.seen: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.seen[n] = super().run_node(n)
        return self.seen[n]
