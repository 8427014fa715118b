"""The check of a function by itself: its examples do not mix, whatever their number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dplip.errors import MixedExamplesError
from dplip.runtime.mixing import mixes, seeded
from dplip.runtime.random_state import random_states
from dplip.separation import Rows, Signature, Template, Watch

SIZES = 5, 7
"""Numbers of examples that have no factor in common with each other, and seldom with the sizes of a layer."""


def check_separation(
    run: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    model: nn.Module | None = None,
    sizes: Sequence[int] = SIZES,
    probe: bool = True,
) -> Template:
    """Show that a model's examples do not mix, and how its operators depend on their number.

    Args:
        run: calls the model, in the mode in which it trains, on tensors like ``inputs``.
        inputs: public rows, at least the largest of ``sizes``; axis 0 counts the examples.
        model: for names in messages, and for its weights.
        sizes: numbers of examples to run; any two without a common factor.
        probe: whether also to compare values and gradients of rows among other rows.

    Returns:
        The template that each later pass must fit.

    Raises:
        MixedExamplesError: naming the module and the operator.
    """
    for t in inputs:
        if len(t) < max(sizes):
            raise ValueError(f"inputs: {len(t)} rows; sizes={tuple(sizes)} need {max(sizes)}.")
    passes = [(watched(run, [t[:n] for t in inputs], model), n) for n in (*sizes, *sizes)]
    template = Template.of(passes[len(sizes) :])  # the first of each size may have filled caches
    if probe:
        _probe(run, inputs, model)
    return template


def watched(run: Callable[..., Tensor], inputs: Sequence[Tensor], model: nn.Module | None = None) -> Signature:
    """The signature of one pass, whose result must have the examples along axis 0."""
    examples = len(inputs[0])
    with seeded(inputs[0].device), Watch(inputs, examples, model) as watch:
        result = run(*inputs)
        rows = watch.rows(result)
    if rows != Rows(0):
        found = "depends on no example" if rows is None else f"has the examples at {rows}"
        raise MixedExamplesError(
            f"The model's result of shape {tuple(result.shape)} {found}. Return one row of scores for each example, "
            "along axis 0."
        )
    _own_backward(result)
    return watch.signature


def _own_backward(result: Tensor) -> None:
    """Refuse custom autograd functions: the operators of a forward pass say nothing of a backward pass of their own."""
    seen: set[Any] = set()
    left = [result.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            home = type(node)._forward_cls.__module__
            if home.partition(".")[0] not in ("dplip", "torch"):
                raise MixedExamplesError(
                    f"{type(node)._forward_cls.__qualname__}: a custom autograd function, whose backward may mix "
                    "examples. Write it with operators of torch."
                )
        left += [source for source, _ in node.next_functions]


def _probe(run: Callable[..., Tensor], inputs: Sequence[Tensor], model: nn.Module | None) -> None:
    weights = [p for p in model.parameters() if p.requires_grad] if model is not None else []
    with seeded(inputs[0].device):
        before = random_states()
        run(*inputs)
        draws = random_states() != before
    if mixes(run, inputs, weights, alone=not draws):
        raise MixedExamplesError(
            "The model: one example's result or gradient was seen to depend on another's, in code that no operator of "
            "its forward pass shows (a backward of its own, a hook, state). Treat each example by itself."
        )
