"""Checks that data, model and loss fit each other, made before anything is spent."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from dplip.data import check_dataset
from dplip.errors import ConfigurationError, DPLipError, first_line
from dplip.losses import Loss
from dplip.nn import BallProjection
from dplip.propagation import propagate
from dplip.runtime.device import device_of
from dplip.runtime.mode import evaluation
from dplip.sampling.loader import example_shape
from dplip.sensitivities.propagated import require_loss


def check_data(
    model: nn.Module, loss: Loss, dataset: Dataset[Any], what: str, input_shape: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """Refuse data that the model and the loss are not defined for; returns the shape of one example.

    Raises:
        ConfigurationError: the data are empty, a label is out of range, or a value is NaN or infinite and the model
            has no ``BallProjection`` to neutralise it.
    """
    require_loss(loss)
    check_dataset(dataset, what=what)
    shape = example_shape(dataset) if input_shape is None else input_shape
    output, _ = propagate(model, shape)
    _check_runs(model, dataset, what)
    classes = loss.classes(math.prod(output.shape))
    neutralised = any(isinstance(module, BallProjection) for module in model.modules())
    check_dataset(dataset, what=what, num_classes=classes, finite=not neutralised, finite_targets=classes is None)
    loss.check(torch.zeros(1, *output.shape), torch.as_tensor(dataset[0][1])[None])  # the target must fit it
    return shape


def _check_runs(model: nn.Module, dataset: Dataset[Any], what: str) -> None:
    """Refuse examples that the model cannot be run on, such as integers where its weights are floats."""
    x = torch.as_tensor(dataset[0][0])[None]
    try:
        with evaluation(model), torch.no_grad():
            model(x.to(device_of(model)))
    except DPLipError:
        raise
    except Exception as wrong:
        raise ConfigurationError(
            f"{what}: the model does not run on an example of {x.dtype} and shape {tuple(x.shape[1:])} "
            f"({first_line(wrong)}). Give examples of the type of its weights; pixels as x.float() / 255."
        ) from None
