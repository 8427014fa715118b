"""What the loaders of private batches share: a fresh draw for each step, handed out in parts that fit into memory."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset, default_collate

from dplip.accounting import Event
from dplip.distinct import require_distinct
from dplip.errors import ConfigurationError


class SampledLoader(ABC):
    """Iterates over one epoch of random batches, each in physical batches that fit into memory.

    Everything but the choice of examples follows from public constants, so a neighbouring data set is sampled
    at the same rate for the same number of steps. An empty logical batch is a step too: it is handed
    out as one blank row of zeros, which counts as no example and whose gradient the optimizer drops, since not
    every model runs on 0 rows. A logical batch may be drawn before the last was taken; ``logical_batches`` then says 2.

    Attributes:
        sample_rate, steps_per_epoch, public_size: Public constants of every step.
        expected_batch_size: sample_rate * public_size, the public divisor of a sum over a batch.
        handed_out: Examples handed out since the last :meth:`take`.
        logical_batches: Logical batches begun since the last :meth:`take`; a step may cover one only.
        number: Number of the logical batch that the last physical batch belongs to, over all iterations.
        complete: Whether the last physical batch ended its logical batch.
    """

    handed_out: int
    logical_batches: int
    number: int
    complete: bool

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        public_size: int,
        sample_rate: float,
        expected_batch_size: float,
        steps_per_epoch: int | None,
        max_physical_batch_size: int | None,
        collate_fn: Callable[[list[Any]], Any] | None,
        seed: int | None,
    ) -> None:
        self.dataset = dataset
        self._public_size, self._sample_rate = public_size, sample_rate
        self._expected_batch_size = expected_batch_size
        default_steps = max(1, round(1 / self.sample_rate))
        self.steps_per_epoch = positive(
            "steps_per_epoch", default_steps if steps_per_epoch is None else steps_per_epoch
        )
        self.max_physical_batch_size = max_physical_batch_size
        if max_physical_batch_size is not None:
            positive("max_physical_batch_size", max_physical_batch_size)
        if seed is not None and (not isinstance(seed, int) or seed < 0):
            raise ConfigurationError(f"seed={seed!r}: a seed is a whole number, 0 or more; pass one, or None")
        self.seeded = seed is not None
        self.collate_fn = collate_fn
        self._size = length(dataset)
        require_distinct(dataset, self._size)
        collate = default_collate if collate_fn is None else collate_fn
        self._fetch = _fetcher(dataset, collate)
        # Made now, because an error in collating must not show at the first empty batch, which depends on chance.
        self._blank = _blank(collate([dataset[0]]))
        # Not PyTorch's generator, which keeps 32 bits of its seed on CPU: few enough to try them all.
        self._generator = np.random.Generator(np.random.SFC64(seed))
        self._iteration = 0
        self.number = 0
        self._reset()

    @abstractmethod
    def event(self, noise_multiplier: float) -> Event:
        """What a step on one of these batches spends, at this noise."""

    @abstractmethod
    def event_of_all(self, noise_multiplier: float) -> Event:
        """What a release on all of the data spends, at this noise."""

    @abstractmethod
    def _draw(self) -> np.ndarray[Any, Any]:
        """The positions of a fresh logical batch."""

    # Read-only: a rate that changed between a draw and its step would be charged for what it was not.

    @property
    def sample_rate(self) -> float:
        return self._sample_rate

    @property
    def public_size(self) -> int:
        return self._public_size

    @property
    def expected_batch_size(self) -> float:
        return self._expected_batch_size

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[Any]:
        """Begin an epoch; what an earlier, abandoned iteration left pending is dropped."""
        self._iteration += 1
        self._reset()
        return self._epoch(self._iteration)

    def restart(self, seed: int | None) -> None:
        """Draw from a new stream from now on: of this seed, or of fresh entropy."""
        self._generator = np.random.Generator(np.random.SFC64(seed))

    def take(self) -> int:
        """The number of examples handed out since the last call; starts the count anew."""
        handed_out, self.handed_out, self.logical_batches = self.handed_out, 0, 0
        return handed_out

    def _reset(self) -> None:
        self.handed_out, self.logical_batches, self.complete = 0, 0, True

    def _epoch(self, iteration: int) -> Iterator[Any]:
        for _ in range(self.steps_per_epoch):
            chosen = torch.from_numpy(self._draw())
            parts = torch.split(chosen, self.max_physical_batch_size or max(1, len(chosen)))
            for number, part in enumerate(parts, start=1):
                if iteration != self._iteration:
                    raise ConfigurationError(
                        f"iterations={self._iteration - iteration + 1} over one {type(self).__name__} at a time: "
                        "their batches would mix in one step; finish one before the next, or make two loaders"
                    )
                batch = self._fetch(part) if len(part) else self._blank
                self.handed_out += len(part)
                self.logical_batches += number == 1
                self.number += number == 1
                self.complete = number == len(parts)
                yield batch


def length(dataset: Dataset[Any]) -> int:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise ConfigurationError(
            f"dataset={type(dataset).__name__}: examples are drawn by index, and this has none or no length; "
            "pass a map-style data set with __getitem__ and __len__"
        )
    size = len(dataset)
    if size == 0:
        raise ConfigurationError(f"len(dataset)={size}: there is nothing to train on; pass at least one example")
    return size


def positive(name: str, value: int) -> int:
    if not isinstance(value, SupportsIndex) or operator.index(value) < 1:
        raise ConfigurationError(f"{name}={value!r}: this is a whole number, at least 1; pass an int")
    return operator.index(value)


def _fetcher(dataset: Dataset[Any], collate: Callable[[list[Any]], Any]) -> Callable[[Tensor], Any]:
    """A function from indices to a batch."""
    rows = _row_reader(dataset) if collate is default_collate else None
    return rows or (lambda indices: collate([dataset[index] for index in indices.tolist()]))


def _row_reader(dataset: Dataset[Any]) -> Callable[[Tensor], list[Tensor]] | None:
    """Indexing of the tensors behind a data set, if it is a plain TensorDataset or a Subset of one."""
    if isinstance(dataset, TensorDataset) and type(dataset).__getitem__ is TensorDataset.__getitem__:
        tensors = dataset.tensors
        return lambda indices: [tensor[indices.to(tensor.device)] for tensor in tensors]
    if isinstance(dataset, Subset) and type(dataset).__getitem__ is Subset.__getitem__:
        rows = _row_reader(dataset.dataset)
        if rows is not None:
            positions, whole = torch.as_tensor(dataset.indices, dtype=torch.int64), rows
            return lambda indices: whole(positions[indices])
    return None


def _blank(batch: Any) -> Any:
    """The same structure with zeros in every tensor."""
    if isinstance(batch, Tensor):
        return torch.zeros_like(batch)
    if isinstance(batch, Mapping):
        return {key: _blank(value) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(_blank, batch))
    if isinstance(batch, list | tuple):
        return type(batch)(map(_blank, batch))
    return batch
