"""The base of the loaders of private batches: a fresh draw for each step, handed out in parts that fit into memory."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset, default_collate

from dplip.accounting import Event
from dplip.accounting.budget import Fixed
from dplip.errors import ConfigurationError, first_line
from dplip.runtime.group import Group
from dplip.runtime.secret import Secret, lent_to_readers
from dplip.sampling.distinct import require_distinct
from dplip.sampling.items import digest_of_some
from dplip.validate import whole


class SampledLoader(Fixed, ABC):
    """Iterates over one epoch of random batches, each in physical batches that fit into memory.

    Everything but the choice of examples follows from public constants, so a neighbouring data set is sampled at the
    same rate for the same number of steps. An empty logical batch is a step too: it is handed out as one row of zeros,
    since not every model runs on 0 rows; the row counts as no example, and the optimizer drops its gradient.

    Of several processes (:meth:`join`) all draw the same batch, and deal it among them by the same draws, so that each
    knows how many parts the others have. A part without an example of this process is a blank row, too.

    Attributes:
        sample_rate, steps_per_epoch, public_size: public constants of every step.
        expected_batch_size: sample_rate * public_size, the public divisor of a sum over a batch.
        handed_out: examples handed out, in this process, since the last :meth:`take`.
        logical_batches: logical batches begun since the last :meth:`take`; a step may cover one only.
        number: number of the logical batch that the last physical batch belongs to, over all iterations.
        complete: whether the last physical batch ended its logical batch.
    """

    # If a rate changed between a draw and its step, the charge would be wrong.
    _FIXED = frozenset(
        {"dataset", "collate_fn", "max_physical_batch_size", "sample_rate", "public_size", "expected_batch_size"}
    )

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
        self.public_size, self.sample_rate = public_size, sample_rate
        self.expected_batch_size = expected_batch_size
        default_steps = max(1, round(1 / self.sample_rate))
        self.steps_per_epoch = whole(
            "steps_per_epoch", default_steps if steps_per_epoch is None else steps_per_epoch, least=1
        )
        self.max_physical_batch_size = max_physical_batch_size
        if max_physical_batch_size is not None:
            whole("max_physical_batch_size", max_physical_batch_size, least=1)
        self._group = Group()
        self._part_count = _part_count(self.expected_batch_size, max_physical_batch_size)
        self._secret, self._dealer, self._chance = (Secret(seed, *key) for key in ((), (2,), (1,)))
        self.collate_fn = collate_fn
        self._size = length(dataset)
        self.collate = collated if collate_fn in (None, default_collate) else collate_fn
        self._rows = _row_reader(dataset) if self.collate is collated else None
        require_distinct(dataset, self._size)
        # Made now, because an error in collating must not show at the first empty batch, which depends on chance.
        self._blank = _blank(self.collate([dataset[0]]))
        self._iteration = 0
        self.number = 0
        self._reset()

    @abstractmethod
    def event(self, noise_multiplier: float) -> Event:
        """The event of a step on one of these batches, at this noise."""

    @abstractmethod
    def event_of_all(self, noise_multiplier: float) -> Event:
        """The event of a release on all of the data, at this noise."""

    @abstractmethod
    def _draw(self) -> np.ndarray[Any, Any]:
        """The positions of a fresh logical batch."""

    @property
    def seeded(self) -> bool:
        """Whether the draws were fixed by a seed; a report must say so."""
        return self._secret.seeded

    @property
    def _generator(self) -> np.random.Generator:
        return self._secret.numbers

    @property
    def batch_sampler(self) -> NoReturn:
        """What Opacus's ``BatchMemoryManager`` looks for."""
        raise AttributeError(
            "batch_sampler: batches are drawn by the loader itself. For large ones, leave BatchMemoryManager out and "
            "give max_physical_batch_size= to make_private."
        )

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[Any]:
        """Begin an epoch; what an earlier, abandoned iteration left pending is dropped."""
        self._iteration += 1
        self._reset()
        return self._epoch(self._iteration)

    def restart(self, seed: int | None) -> None:
        """Draw from a new stream from now on: of this seed, or of fresh entropy; all processes do."""
        for source in (self._secret, self._chance, self._dealer):
            source.restart(seed)
        self._share()

    def join(self, group: Group) -> None:
        """Hand out, from now on, this process's share of batches that all processes of a group draw alike.

        All of them have the same data in the same order. What was handed out before is dropped.

        Raises:
            GroupError: the processes have other data, or batches of other sizes.
        """
        if group is self._group or group.size == 1:
            return
        names = "public_size", "sample_rate", "expected_batch_size", "steps_per_epoch", "max_physical_batch_size"
        group.same(
            lambda: {
                "sampling": type(self).__name__,
                **{name: getattr(self, name) for name in names},
                "len(dataset)": self._size,
                "seed": self._secret.seed,
            }
        )
        secret = group.secret()
        group.same(lambda: {"dataset": digest_of_some(self.dataset, self._size, secret)})
        self._group = group
        self._part_count = _part_count(self.expected_batch_size / group.size, self.max_physical_batch_size)
        self._share()
        self._iteration, self.number = self._iteration + 1, 0
        self._reset()

    def _share(self) -> None:
        """Draw the batches, and how they are dealt, as all processes do; but read examples by chance of one's own."""
        if self._group.size > 1:
            secret = self._group.secret()
            self._secret.share(secret)
            self._dealer.share(secret)
            self._chance.separate(self._group.rank)

    def take(self) -> int:
        """The number of examples handed out since the last call; starts the count anew."""
        handed_out, self.handed_out, self.logical_batches = self.handed_out, 0, 0
        return handed_out

    @property
    def expected_part_size(self) -> float:
        """The expected number of examples in a part.

        Each example draws its part independently, so one more example moves the rounding of its own part's sum alone.
        """
        return self.expected_batch_size / (self._part_count * self._group.size)

    def _parts(self, chosen: Tensor) -> list[Tensor]:
        """This process's share of a batch, in parts that fit into memory; all processes have as many parts.

        Each example draws its process and its part, independently of the others: were they dealt in turn, one more
        example would send all later ones to other processes, and change the rounding of every process's sum.
        """
        ranks, most = self._group.size, self.max_physical_batch_size
        if most is None and ranks == 1:
            return [chosen]
        place = torch.from_numpy(self._dealer.numbers.integers(self._part_count * ranks, size=len(chosen)))
        dealt = chosen[place.argsort(stable=True)].split(place.bincount(minlength=self._part_count * ranks).tolist())
        size, parts = len(chosen) if most is None else most, []
        for first in range(0, len(dealt), ranks):
            count = max(-(-len(of_one) // max(size, 1)) for of_one in dealt[first : first + ranks])
            own = dealt[first + self._group.rank]
            parts += [own[i * size : (i + 1) * size] for i in range(count)]
        return parts or [chosen]

    def _reset(self) -> None:
        self.handed_out, self.logical_batches, self.complete = 0, 0, True

    def _epoch(self, iteration: int) -> Iterator[Any]:
        process = os.getpid()
        for _ in range(self.steps_per_epoch):
            parts = self._parts(torch.from_numpy(self._draw()))
            for number, part in enumerate(parts, start=1):
                if iteration != self._iteration:
                    raise ConfigurationError(
                        f"iterations={self._iteration - iteration + 1} over one {type(self).__name__} at a time: "
                        "their batches would mix in one step; finish one before the next, or make two loaders"
                    )
                if process != os.getpid():
                    raise ConfigurationError(
                        f"os.getpid()={os.getpid()}: this iteration began in process {process}, which goes on with it, "
                        "and one batch would be in two releases; begin another here: iter(loader)"
                    )
                batch = self._read(part) if len(part) else self._blank
                self.handed_out += len(part)
                self.logical_batches += number == 1
                self.number += number == 1
                self.complete = number == len(parts)
                yield batch

    def _read(self, part: Tensor) -> Any:
        if self._rows is not None:
            return self._rows(part)
        with lent_to_readers(self._chance):  # a row's augmentation must not depend on earlier rows
            return self.collate([self.dataset[index] for index in part.tolist()])


def collated(items: list[Any]) -> Any:
    """A batch of a list of items: torch's default_collate, after the numbers in a row of a table are made a tensor."""
    try:
        return default_collate([_as_tensors(item) for item in items])
    except RuntimeError as wrong:
        if "equal size" not in str(wrong):
            raise
        raise ConfigurationError(
            f"dataset: its items are of several shapes ({first_line(wrong)}). Bring them to one public shape, "
            "sequences with collate_fn=dplip.data.Padding(length)."
        ) from None


def _as_tensors(item: Any) -> Any:
    if not isinstance(item, Mapping):
        return item
    return {k: torch.as_tensor(v) if isinstance(v, list | np.ndarray) else v for k, v in item.items()}


def _part_count(expected: float, most: int | None) -> int:
    """The number of parts of a batch, the least for which a part seldom exceeds what fits into memory."""
    if most is None:
        return 1
    return max(1, math.ceil(expected / max(most / 2, most - 2 * math.sqrt(most))))


def length(dataset: Dataset[Any]) -> int:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise ConfigurationError(
            f"dataset={type(dataset).__name__}: examples are drawn by index, and this has none or no length; "
            "pass a map-style data set with __getitem__ and __len__"
        )
    if hasattr(dataset, "iloc"):
        raise ConfigurationError(
            f"dataset={type(dataset).__name__}: a table is indexed by its columns; pass its rows, as "
            "table.to_dict('records') or TensorDataset(inputs, targets)"
        )
    size = len(dataset)
    if size == 0:
        raise ConfigurationError(f"len(dataset)={size}: there is nothing to train on; pass at least one example")
    return size


def _row_reader(dataset: Dataset[Any]) -> Callable[[Tensor], list[Tensor]] | None:
    """Indexing of the tensors behind a data set, if it is a plain TensorDataset or a Subset of one."""
    if isinstance(dataset, TensorDataset) and type(dataset).__getitem__ is TensorDataset.__getitem__:
        return partial(_rows, dataset.tensors)
    if isinstance(dataset, Subset) and type(dataset).__getitem__ is Subset.__getitem__:
        rows = _row_reader(dataset.dataset)
        if rows is not None:
            return partial(_rows_of_subset, rows, torch.as_tensor(dataset.indices, dtype=torch.int64))
    return None


def _rows(tensors: tuple[Tensor, ...], indices: Tensor) -> list[Tensor]:
    return [tensor[indices.to(tensor.device)] for tensor in tensors]


def _rows_of_subset(whole: Callable[[Tensor], list[Tensor]], positions: Tensor, indices: Tensor) -> list[Tensor]:
    return whole(positions[indices])


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


def example_shape(dataset: Dataset[Any]) -> tuple[int, ...]:
    """The shape of one example's input: the first field of the first item, without a batch dimension.

    Raises:
        ConfigurationError: the data are empty or not map-style, or that field is not an array.
    """
    length(dataset)
    item = dataset[0]
    first = item[0] if isinstance(item, tuple | list) else item
    try:
        return tuple(torch.as_tensor(first).shape)
    except (TypeError, ValueError, RuntimeError):
        raise ConfigurationError(
            f"dataset[0] begins with a {type(first).__name__}: a model's input is an array of numbers; "
            "transform it into a tensor in the data set"
        ) from None
