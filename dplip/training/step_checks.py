"""The last check before a step is charged: its gradients must be the ones that its bounds are proved for."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dplip.errors import ConfigurationError
from dplip.losses import Loss
from dplip.training.batches import Batches
from dplip.training.gradient_monitor import GradientMonitor
from dplip.training.step_bounds import StepBounds


def check_gradients(
    gradients: list[Tensor], batches: Batches, monitor: GradientMonitor, loss: Loss, bounds: StepBounds
) -> None:
    """Refuse gradients that are not those of one pass of the loss over one batch that the loader handed out.

    Args:
        gradients: the sums of the parts before the last, and the last part's.
        batches, monitor, loss, bounds: the optimizer's.

    Raises:
        ConfigurationError: says what was seen instead.
    """
    handed, seen = batches.handed_out, monitor.examples
    if batches.logical_batches != 1:
        raise ConfigurationError(
            f"step(): the loader handed out {batches.logical_batches} batches since the last step, and an "
            "example may be in several of them. Take one step for each batch."
        )
    if handed == 0:  # an empty batch: its gradients are dropped
        return
    if seen == 0:
        raise ConfigurationError(
            "step(): the gradients did not come through the declared loss. Call loss(model(x), y).backward() with "
            f"the {type(loss).__name__} that this optimizer was given."
        )
    if handed > bounds.share:
        raise ConfigurationError(
            f"step(): the loader handed out {handed} examples for an expected {batches.expected_batch_size:g}, which "
            "no chance explains, so the rounding of their sum is not covered. Take one step for each batch; and if "
            "public_size is far below the data's, give a larger number that is public."
        )
    monitor.check()
    if monitor.problem:
        raise ConfigurationError(f"step(): {monitor.problem}")
    if seen != handed:
        raise ConfigurationError(
            f"step(): the loss saw {seen} examples, but the loader handed out {handed} since the last step. Do one "
            "backward pass over each batch, with zero_grad() before it."
        )
    if monitor.crowded:
        raise ConfigurationError(f"step(): {monitor.crowded}")
    if gradients and not math.isfinite(float(torch.stack(torch._foreach_norm(gradients)).sum())):
        raise ConfigurationError(
            "step(): a gradient is NaN or infinite. Either an input is: put dplip.nn.BallProjection(radius) first "
            "in the model, which neutralises such inputs, or clean the data. Or the weights have grown until "
            f"numbers overflow (the sensitivity is {bounds().total:.3g}; it was {bounds.planned:.3g} at "
            "first): use dplip.nn.bound_gradients(model) or orthogonal layers, or a lower learning rate."
        )
