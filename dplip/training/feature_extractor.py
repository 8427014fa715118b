"""The feature extractor: the leading layers that nothing is trained in, run once per example instead of every epoch."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from tqdm.auto import tqdm

from dplip.errors import ConfigurationError, DPLipError
from dplip.losses import Loss
from dplip.nn import Frozen
from dplip.propagation import Walk
from dplip.rules import RULES
from dplip.runtime.device import device_of
from dplip.runtime.mode import evaluation
from dplip.runtime.secret import Secret, lent_to_readers
from dplip.sensitivities import sensitivity

CHUNK = 64
"""Number of examples that are read at once."""


def split_extractor(model: nn.Module, loss: Loss, input_shape: tuple[int, ...]) -> tuple[nn.Sequential, nn.Sequential]:
    """Split a model into its feature extractor and the rest, which bounds its own input.

    Args:
        model: a ``Sequential``; extractor and rest share its layers.
        loss: the loss that the rest is trained by.
        input_shape: shape of one example of the model.

    Raises:
        ConfigurationError: the model is no ``Sequential``, or does not begin with a layer that can be run in advance.

    Guarantee: the extractor is a fixed function of one example (layers that have a rule, no state but what is
    :class:`dplip.nn.Frozen`, and do the same in both modes), so data sets that are neighbours stay so; and the rest
    has a finite sensitivity whatever its input, so nothing in the bounds rests on the extractor.
    """
    if type(model) is not nn.Sequential:
        raise ConfigurationError(
            f"precompute=True: the model is a {type(model).__name__}. Make it a Sequential: front end, bound, head."
        )
    shapes = fixed_shapes(model, input_shape)
    for end in range(len(shapes) - 1, 0, -1):
        rest = model[end:]
        try:
            sensitivity(rest, loss, shapes[end])
        except DPLipError:
            continue
        return cast(nn.Sequential, model[:end]), cast(nn.Sequential, rest)
    raise ConfigurationError(
        f"precompute=True: the model begins with {type(model[0]).__name__ if len(model) else 'nothing'}, and no "
        "leading layers without parameters, state or chance leave a rest that bounds its own input. Put a "
        "BallProjection between the front end and the first trained layer, or leave precompute off."
    )


def fixed_shapes(model: nn.Sequential, input_shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The shapes of one example before, between and after the leading layers that are fixed functions of it."""
    x = torch.rand(2, *input_shape, device=device_of(model))
    shapes = [input_shape]
    for layer in model:
        if not _fixed(layer, shapes[-1]):
            break
        with torch.no_grad():
            values = [layer.train(mode)(x) for mode in (True, True, False)]
        layer.train(model.training)
        if not all(torch.equal(v, values[0]) for v in values):
            break
        x = values[0]
        shapes.append(tuple(x.shape[1:]))
    return shapes


def features(
    extractor: nn.Module, dataset: Dataset[Any], progress: bool = False, seed: int | None = None
) -> TensorDataset:
    """The extractor's output for each example, with its target, in the order of the data.

    Args:
        extractor: a fixed function of one example, run in evaluation mode where its buffers are.
        dataset: map-style data set of (input, target) pairs.
        progress: show a bar.
        seed: fixes what the data set draws, for tests.

    Guarantee: an example's value is the same, to the last bit, whatever the rest of the data. A data set's draws from
    global generators are made of secret bits (:mod:`dplip.runtime.secret`), so they do not depend on earlier examples.
    """
    size = len(cast(Sized, dataset))
    device = device_of(extractor)
    values: Tensor | None = None
    targets = []
    bar = tqdm(total=size, unit="example", disable=not progress)
    with torch.no_grad(), evaluation(extractor), lent_to_readers(Secret(seed, 3)), bar:
        bar.set_description("features")
        done = 0
        for x, y in DataLoader(dataset, batch_size=CHUNK):
            # One at a time: in a batch, an example's rounding may depend on the size of the batch and its place there.
            z = torch.cat([extractor(one) for one in x.to(device).split(1)]).cpu()
            if values is None:  # one allocation: the features may fill half of the memory
                values = z.new_empty(size, *z.shape[1:])
            values[done : done + len(z)] = z
            targets.append(y)
            done += len(z)
            bar.update(len(z))
    assert values is not None  # the data were checked: there is an example
    return TensorDataset(values, torch.cat(targets))


def _fixed(layer: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether a layer has no state, and it or each of its parts has a rule (so treats each example by itself)."""
    if layer.state_dict() and type(layer) is not Frozen:
        return False
    if RULES.of_module(layer) is not None:
        return True
    if any(RULES.of_module(part) is None for part in layer.modules() if not list(part.children())):
        return False
    try:
        Walk(layer, shape)  # walks the operations between the parts
    except DPLipError:
        return False
    return True
