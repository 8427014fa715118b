"""Checks that refuse models with hooks, with replaced code, or with operations that have no rule."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from dplip.norms.value_norms import is_real
from dplip.propagation.graph import path_of, target_of
from dplip.rules import RULES, refuse

REMEDIES = {
    "BatchNorm": (
        "mixes the examples of a batch.",
        "Use dplip.nn.Center, or GroupNorm without affine, instead; one with statistics of public data may stay in "
        "eval() mode, its weights frozen.",
    ),
    "SyncBatchNorm": ("mixes the examples of a batch.", "Use dplip.nn.Center instead."),
    "Bilinear": ("multiplies two values.", "Use sums of linear layers."),
    "MultiheadAttention": ("multiplies values that depend on the example.", "Use linear and convolutional layers."),
}

T = torch.Tensor

FOLDABLE = {
    *(operator.neg, operator.add, operator.sub, operator.mul, operator.truediv, operator.getitem, operator.pow),
    *(torch.add, torch.sub, torch.mul, torch.div, torch.neg, torch.clamp, torch.sqrt, T.sqrt, torch.exp, T.exp),
    *(torch.reciprocal, T.reciprocal, torch.rsqrt, torch.square, torch.abs, T.abs, T.float, T.double, T.contiguous),
    *(T.view, torch.reshape, T.reshape, torch.unsqueeze, T.unsqueeze, torch.flatten, T.flatten, torch.t, T.t),
    *(T.transpose, T.permute, T.expand),
}
"""Pure functions that are evaluated where all of their arguments are constants."""


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
                    path, what, "has a hook, which may do anything.", "Remove the hook (or the wrapper that adds it)."
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
"""Attributes that a call of a module runs besides ``forward``: the code of ``module.compile()``, which fx cannot trace,
and hooks, of which :func:`check_modules` allows observers only."""


@contextmanager
def bare(model: nn.Module) -> Iterator[None]:
    """A context in which a call of a module runs its ``forward``, and hooks of others, but no observer."""
    dressed = [(held, {k: held[k] for k in BESIDE if held.get(k)}) for m in model.modules() if (held := vars(m))]
    dressed = [(held, beside) for held, beside in dressed if beside]
    for held, beside in dressed:
        held.update({k: None if k == BESIDE[0] else _foreign(beside[k]) for k in beside})
    try:
        yield
    finally:
        for held, beside in dressed:
            held.update(beside)


def _foreign(hooks: Mapping[int, Any]) -> dict[int, Any]:
    return {key: hook for key, hook in hooks.items() if not isinstance(hook, Observer)}


class Observer:
    """Base class of the library's own hooks, which change nothing."""


class PublicHook(Observer):
    """Base class of the library's own hooks on a step, which add a function of public weights after the noise."""


def check_rules(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
    """Refuse operations without a rule, by name and before the model is run."""
    for node in graph.nodes:
        if node.op == "call_module":
            module = modules[str(node.target)]
            if RULES.of_module(module) is None or _takes_statistics(module):
                what = type(module).__name__
                reason, remedy = next(
                    (v for k, v in REMEDIES.items() if what.startswith(k)),
                    ("has no rule that bounds it.", "Use another layer, or write a rule: @dplip.rule(...)."),
                )
                if RULES.of_module(module) is None and RULES.of(type(module).forward) is not None:
                    reason = "changes a layer that has a rule, so that the rule may no longer hold."
                refuse(path_of(node), what, reason, remedy)
        elif node.op in ("call_function", "call_method"):
            target = target_of(node)
            if target is None:
                refuse(path_of(node), f"Tensor.{node.target}", "is not a tensor method.", "Use another operation.")
            known = RULES.of(target) is not None or target in FOLDABLE or target in _SHAPE_READERS
            if not known and not _reads_shape(node):
                name = getattr(target, "__name__", str(target))
                reason = (
                    "changes a value in place."
                    if name.endswith("_") and not name.endswith("__")
                    else "has no rule that bounds it."
                )
                refuse(path_of(node), name, reason, "Use another operation, or write a rule: @dplip.rule(...).")


def _takes_statistics(module: nn.Module) -> bool:
    """Whether a module normalises by statistics of its batch; a run would change its running statistics."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None)


_SHAPE_READERS = {torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel, operator.floordiv, operator.mod}


def _reads_shape(node: fx.Node) -> bool:
    return node.target is getattr and node.args[1] in ("shape", "ndim", "dtype", "device")
