"""Checks of data sets before training, and a hold-out under which neighbours stay neighbours."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sized
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from dplip.errors import ConfigurationError


def check_dataset(
    dataset: Dataset[Any],
    *,
    what: str,
    num_classes: int | None = None,
    finite: bool = False,
    finite_targets: bool = False,
) -> None:
    """Refuse a data set that no sound run can be made from.

    Args:
        dataset: map-style data set of (input, target) pairs.
        what: the argument's name, for the message.
        num_classes: if given, every target must be one whole number in [0, num_classes).
        finite: if true, inputs and targets must hold neither NaN nor infinity.
        finite_targets: the same of targets alone.

    Raises:
        ConfigurationError: naming the first example at fault.
    """
    kind = type(dataset).__name__
    if isinstance(dataset, DataLoader):
        raise ConfigurationError(f"{what}={kind}: pass its data set, loader.dataset; batches are drawn here")
    try:
        size = len(cast(Sized, dataset))
    except (TypeError, NotImplementedError):
        raise ConfigurationError(
            f"{what}={kind} has no length, and sampling needs one: pass a map-style data set"
        ) from None
    if size == 0:
        raise ConfigurationError(f"{what}={kind} is empty (length 0): pass at least one example")
    # A subclass may transform its items, so its tensors are not what the model will see.
    chunks = _tensor_chunks if type(dataset) is TensorDataset else _item_chunks
    for start, inputs, targets in chunks(dataset, size, what):
        if finite:
            _require(_is_finite(inputs), inputs, f"{what} input", start, "finite numbers")
        if finite or finite_targets:
            _require(_is_finite(targets), targets, f"{what} target", start, "finite numbers")
        if num_classes is not None:
            wanted = f"one class, a whole number from 0 to {num_classes - 1}"
            if targets.ndim > 1:
                wanted += " (several labels of an example go with dplip.losses.BinaryCrossEntropy)"
            _require(_is_label(targets, num_classes), targets, f"{what} label", start, wanted)


def holdout(dataset: TensorDataset, fraction: float, seed: int) -> tuple[TensorDataset, TensorDataset]:
    """Split a data set at random into a training part and a held-out part.

    Held-out examples are as private as the others: choices made by looking at them are not covered by the training
    run's epsilon.

    Args:
        dataset: the data set to split.
        fraction: the probability, for each example, of being held out.
        seed: fixes an example's part, together with its values. Equal examples go to one part.

    Raises:
        ConfigurationError: fraction outside (0, 1), a negative seed, or an empty part.

    Guarantee: an example's part depends on that example and ``seed`` alone, so adding or removing one, wherever it
    stands, moves no other example, and neighbouring data sets have neighbouring parts. The sizes are therefore
    random, as if a coin were thrown for each distinct example.
    """
    if not 0 < fraction < 1:
        raise ConfigurationError(f"fraction={fraction} is not between 0 and 1 (both excluded): pass for example 0.1")
    if seed < 0:
        raise ConfigurationError(f"seed={seed} is negative: pass 0 or more")
    held = torch.tensor([_coin(row, seed) < fraction for row in _rows(dataset)], dtype=torch.bool)
    parts = [TensorDataset(*(t[mask.to(t.device)] for t in dataset.tensors)) for mask in (~held, held)]
    if not all(len(part) for part in parts):
        raise ConfigurationError(
            f"fraction={fraction} of {len(dataset)} examples (seed={seed}) leaves one part empty: "
            "pass more examples, or a fraction nearer to one half"
        )
    return parts[0], parts[1]


def _rows(dataset: TensorDataset) -> Iterator[bytes]:
    """The bytes of each example."""
    parts = [t.detach().cpu().unsqueeze(-1).flatten(1).contiguous().view(torch.uint8).numpy() for t in dataset.tensors]
    for values in zip(*parts, strict=True):
        yield b"".join(value.tobytes() for value in values)


def _coin(row: bytes, seed: int) -> float:
    """A pseudo-random number in [0, 1), fixed by the row and the seed."""
    return int.from_bytes(hashlib.blake2b(b"%d:%s" % (seed, row), digest_size=6).digest(), "big") / 2**48


def _tensor_chunks(dataset: Any, size: int, what: str) -> Iterator[tuple[int, Tensor, Tensor]]:
    if len(dataset.tensors) != 2:
        raise ConfigurationError(
            f"{what} holds {len(dataset.tensors)} tensors, not two: pass TensorDataset(inputs, targets)"
        )
    step = 8192  # bounds the memory of the checks
    for start in range(0, size, step):
        yield start, dataset.tensors[0][start : start + step], dataset.tensors[1][start : start + step]


def _item_chunks(dataset: Any, size: int, what: str) -> Iterator[tuple[int, Tensor, Tensor]]:
    shape: tuple[int, ...] | None = None
    for index in range(size):
        item = dataset[index]
        try:
            inputs, target = (torch.as_tensor(part)[None] for part in item)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigurationError(
                f"{what}[{index}] is a {type(item).__name__}, not a pair (input, target) of tensors or "
                f"numbers ({error}): convert it in the data set"
            ) from error
        if shape is not None and inputs.shape != shape:
            raise ConfigurationError(
                f"{what}[{index}] has shape {tuple(inputs.shape[1:])}, and {what}[0] {tuple(shape[1:])}: "
                "bring examples to one shape in the data set, sequences by collate_fn=dplip.data.Padding(length)"
            )
        shape = inputs.shape
        yield index, inputs, target


def _is_finite(values: Tensor) -> Tensor:
    return torch.isfinite(values).unsqueeze(-1).flatten(1).all(1)


def _is_label(targets: Tensor, num_classes: int) -> Tensor:
    labels = targets.unsqueeze(-1).flatten(1)
    if labels.shape[1] != 1:
        return torch.zeros(len(labels), dtype=torch.bool)
    return ((labels >= 0) & (labels < num_classes) & (labels.long() == labels)).squeeze(1)


def _require(good: Tensor, values: Tensor, name: str, start: int, wanted: str) -> None:
    if not good.all():
        first = int(good.int().argmin())
        value = values[first]
        found = f"={value.item()}" if value.numel() == 1 else f" of shape {tuple(value.shape)}"
        raise ConfigurationError(f"{name} {start + first}{found} is not {wanted}: correct it or leave it out")
