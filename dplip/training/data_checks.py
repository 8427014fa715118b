"""Checks that data, model and loss fit each other, made before anything is spent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset, TensorDataset

from dplip.data import Padding, check_dataset
from dplip.errors import ConfigurationError, DPLipError, first_line
from dplip.losses import Loss
from dplip.losses.structure import is_shape, mapped, shapes
from dplip.nn import BallProjection
from dplip.runtime.device import device_of
from dplip.runtime.example import Call, Example
from dplip.runtime.mode import evaluation
from dplip.sampling.loader import collated, length
from dplip.sensitivities.propagated import require_loss
from dplip.training.calls import Calls
from dplip.training.sources import traced


def check_data(
    dataset: Dataset[Any],
    what: str,
    model: nn.Module,
    loss: Loss,
    calls: Calls,
    collate: Callable[[list[Any]], Any] = collated,
    example: Example | None = None,
) -> Example:
    """Refuse data that the model and the loss are not defined for; returns what one example is to the model.

    Args:
        dataset: the data.
        what: the name of their argument, for messages.
        model, loss: what they are to fit.
        calls: how the model is called with a batch.
        collate: makes a batch of a list of items.
        example: what the model is called with; None: the first item.

    Raises:
        ConfigurationError: the data are empty, a label is out of range, or a value is NaN or infinite and the model
            has no ``BallProjection`` to neutralise it.
    """
    require_loss(loss)
    as_it_is = calls.plain and collate is collated  # else the items may be of several lengths, which are padded
    plain = isinstance(dataset, DataLoader) or (as_it_is and _is_pair(dataset))
    if plain:
        check_dataset(dataset, what=what)
    length(dataset)
    call, targets = calls.of(collate([dataset[0]]))
    if example is None:
        example = Example.of_batch(*call)
    walk = traced(model, example)
    output = _output(model, call, calls, what, collate)
    shape = shapes(loss.select(output)) if walk is None else walk.shape(walk.output())
    classes = loss.classes(shape)
    neutralised = any(isinstance(module, BallProjection) for module in model.modules())
    if plain and targets.ndim <= 2 and is_shape(shape) and len(shape) <= 1:
        check_dataset(dataset, what=what, num_classes=classes, finite=not neutralised, finite_targets=classes is None)
    else:
        for index in range(length(dataset)):
            call, targets = calls.of(collate([dataset[index]]))
            _check_item(loss, shape, example, call, targets, f"{what}[{index}]", finite=not neutralised)
    loss.validated(_zeros(shape), targets)  # the target must fit it
    return example


def _is_pair(dataset: Any) -> bool:
    """Whether the items are pairs of an array and a target."""
    if isinstance(dataset, TensorDataset):
        return len(dataset.tensors) == 2
    try:
        item = dataset[0]
        return isinstance(item, tuple | list) and len(item) == 2 and torch.as_tensor(item[0]) is not None
    except (TypeError, ValueError, RuntimeError, KeyError):
        return False


def _zeros(shape: Any) -> Any:
    """Outputs of one example."""
    return mapped(lambda size: torch.zeros(1, *size), shape)


def _check_item(loss: Loss, shape: Any, example: Example, call: Call, targets: Any, what: str, finite: bool) -> None:
    wrong = example.problem(call)
    if wrong:
        raise ConfigurationError(f"{what}: {wrong}")
    floats = [t for t in tree_leaves((call, targets)) if isinstance(t, Tensor) and t.is_floating_point()]
    if finite and not all(bool(t.isfinite().all()) for t in floats):
        raise ConfigurationError(f"{what} holds NaN or infinity: correct it or leave it out")
    try:
        loss.validated(_zeros(shape), targets)
    except ConfigurationError as wrong:
        raise ConfigurationError(f"{what}: {wrong}") from None


def _output(model: nn.Module, call: Call, calls: Calls, what: str, collate: Any) -> Any:
    """What the loss is given for the first item; refuses examples that the model cannot be run on."""
    try:
        with evaluation(model), torch.no_grad():
            return calls.run(model, call, device_of(model))
    except DPLipError:
        raise
    except Exception as wrong:
        raise ConfigurationError(
            f"{what}: the model does not run on its first example, {Example.of_batch(*call)} ({type(wrong).__name__}: "
            f"{first_line(wrong)}). {_remedy(wrong, collate)}"
        ) from None


def _remedy(wrong: Exception, collate: Any) -> str:
    if isinstance(collate, Padding) and collate.mask and isinstance(wrong, TypeError | RuntimeError):
        return (
            "Padding adds a mask, as an argument behind the sequence: let forward take it, or leave it out by "
            f"dplip.data.Padding({collate.length}, mask=False)."
        )
    if isinstance(wrong, TypeError):
        return "Let the data set give what its forward takes, or pass unpack=lambda batch: (args, kwargs, targets)."
    if any(words in str(wrong) for words in ("dtype", "scalar type", "weight type")):
        return "Give examples of the type of its weights; pixels as x.float() / 255."
    return "Give examples of the shapes that its layers take; masks as long as the sequences."
