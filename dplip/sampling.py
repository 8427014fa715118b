"""Poisson batches: each example takes part in each step with the same public probability, on its own."""

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from dplip.errors import ConfigurationError


class PoissonLoader:
    """Iterates over one epoch of Poisson batches, each in physical batches that fit into memory.

    Everything but the choice of examples follows from public constants, so a neighbouring data set is sampled
    at the same rate for the same number of steps. An empty logical batch is a step too: it is handed
    out as one blank row of zeros, which counts as no example and whose gradient the optimizer drops, since not
    every model runs on 0 rows. A logical batch may be drawn before the last was taken; ``logical_batches`` then says 2.

    Args:
        dataset: Map-style; a ``TensorDataset``, or a ``Subset`` of one, is served by indexing its tensors.
        sample_rate: Probability q in (0, 1] of an example to be in a batch; give this or ``batch_size``.
        batch_size: Expected logical batch size, so that q = batch_size / public_size.
        public_size: The number of examples as far as the public knows; by default the length of the data,
            which is then treated as public.
        steps_per_epoch: Logical batches per iteration; by default max(1, round(1 / q)).
        max_physical_batch_size: At most so many rows are handed out at a time; by default any number.
        collate_fn: Makes a batch of a list of items; PyTorch's default_collate by default.
        seed: Fixes the draws, for tests. By default they come from a generator of the loader's own with 128
            bits of entropy from the operating system, which ``torch.manual_seed`` does not touch.

    Raises:
        ConfigurationError: If the data are empty or not map-style, q is not in (0, 1], or a count is below 1.

    Guarantee: in each logical batch every example is present with probability q (up to 2^-53), independently
    of all others and of all other batches: the sampling that an event of rate q stands for.

    Attributes:
        sample_rate, steps_per_epoch, public_size: As above.
        expected_batch_size: q * public_size, the public divisor of a sum over a batch.
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
        sample_rate: float | None = None,
        batch_size: float | None = None,
        public_size: int | None = None,
        steps_per_epoch: int | None = None,
        max_physical_batch_size: int | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        seed: int | None = None,
    ) -> None:
        size = _length(dataset)
        self.dataset = dataset
        self._public_size = _positive("public_size", size if public_size is None else public_size)
        self._sample_rate, self._expected_batch_size = _rate(sample_rate, batch_size, self._public_size)
        default_steps = max(1, round(1 / self.sample_rate))
        self.steps_per_epoch = _positive(
            "steps_per_epoch", default_steps if steps_per_epoch is None else steps_per_epoch
        )
        self.max_physical_batch_size = max_physical_batch_size
        if max_physical_batch_size is not None:
            _positive("max_physical_batch_size", max_physical_batch_size)
        if seed is not None and (not isinstance(seed, int) or seed < 0):
            raise ConfigurationError(f"seed={seed!r}: a seed is a whole number, 0 or more; pass one, or None")
        self.seeded = seed is not None
        self.collate_fn = collate_fn
        self._size = size
        collate = default_collate if collate_fn is None else collate_fn
        self._fetch = _fetcher(dataset, collate)
        # Made now, because an error in collating must not show at the first empty batch, which depends on chance.
        self._blank = _blank(collate([dataset[0]]))
        # Not PyTorch's generator, which keeps 32 bits of its seed on CPU: few enough to try them all.
        self._generator = np.random.Generator(np.random.SFC64(seed))
        self._iteration = 0
        self.number = 0
        self._reset()

    @classmethod
    def from_data_loader(
        cls,
        data_loader: DataLoader[Any],
        *,
        public_size: int | None = None,
        max_physical_batch_size: int | None = None,
        seed: int | None = None,
    ) -> "PoissonLoader":
        """A Poisson loader over the data of a PyTorch loader, with its batch size as the expected one.

        Its shuffling or its order is replaced; its workers are not used.

        Raises:
            ConfigurationError: If it samples in a way that would be lost.
        """
        batch_size, sampler = data_loader.batch_size, data_loader.sampler
        if batch_size is None or type(data_loader.batch_sampler) is not BatchSampler:
            raise ConfigurationError(
                f"batch_size={batch_size}, batch_sampler={type(data_loader.batch_sampler).__name__}: the "
                "examples of a private step are drawn by Poisson sampling; give the DataLoader a "
                "batch_size and no batch_sampler"
            )
        plain = type(sampler) is SequentialSampler or (
            type(sampler) is RandomSampler
            and not sampler.replacement
            and sampler.num_samples == len(sampler.data_source)
        )
        if not plain or getattr(sampler, "data_source", None) is not data_loader.dataset:
            raise ConfigurationError(
                f"sampler={type(sampler).__name__}: a private step includes every example with the same "
                "probability; use shuffle=True or no sampler, and weigh or select examples in the data set"
            )
        return cls(
            data_loader.dataset,
            batch_size=batch_size,
            public_size=public_size,
            max_physical_batch_size=max_physical_batch_size,
            collate_fn=data_loader.collate_fn,
            seed=seed,
        )

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
            # float64: at 24 bits, a sample rate of 1e-6 would come out 1.3% too high.
            chosen = torch.from_numpy(np.flatnonzero(self._generator.random(self._size) < self.sample_rate))
            parts = torch.split(chosen, self.max_physical_batch_size or max(1, len(chosen)))
            for number, part in enumerate(parts, start=1):
                if iteration != self._iteration:
                    raise ConfigurationError(
                        f"iterations={self._iteration - iteration + 1} over one PoissonLoader at a time: "
                        "their batches would mix in one step; finish one before the next, or make two loaders"
                    )
                batch = self._fetch(part) if len(part) else self._blank
                self.handed_out += len(part)
                self.logical_batches += number == 1
                self.number += number == 1
                self.complete = number == len(parts)
                yield batch


def example_shape(dataset: Dataset[Any]) -> tuple[int, ...]:
    """The shape of one example's input: the first field of the first item, without a batch dimension.

    Raises:
        ConfigurationError: If the data are empty or not map-style, or that field is not an array.
    """
    _length(dataset)
    item = dataset[0]
    first = item[0] if isinstance(item, tuple | list) else item
    try:
        return tuple(torch.as_tensor(first).shape)
    except (TypeError, ValueError, RuntimeError):
        raise ConfigurationError(
            f"dataset[0] begins with a {type(first).__name__}: a model's input is an array of numbers; "
            "transform it into a tensor in the data set"
        ) from None


def _rate(sample_rate: float | None, batch_size: float | None, public_size: int) -> tuple[float, float]:
    if (sample_rate is None) == (batch_size is None):
        raise ConfigurationError(
            f"sample_rate={sample_rate}, batch_size={batch_size}: either fixes the other; give one of the two"
        )
    if batch_size is not None:
        if not 0 < batch_size <= public_size:
            raise ConfigurationError(
                f"batch_size={batch_size}, public_size={public_size}: a batch is drawn from the data; choose "
                "an expected batch size above 0 and at most the size of the data"
            )
        return float(batch_size) / public_size, float(batch_size)
    if sample_rate is None or not 0 < sample_rate <= 1:
        raise ConfigurationError(
            f"sample_rate={sample_rate}: a sampling probability lies in (0, 1]; pass such a number"
        )
    return float(sample_rate), float(sample_rate) * public_size


def _length(dataset: Dataset[Any]) -> int:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise ConfigurationError(
            f"dataset={type(dataset).__name__}: examples are drawn by index, and this has none or no length; "
            "pass a map-style data set with __getitem__ and __len__"
        )
    size = len(dataset)
    if size == 0:
        raise ConfigurationError(f"len(dataset)={size}: there is nothing to train on; pass at least one example")
    return size


def _positive(name: str, value: int) -> int:
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
