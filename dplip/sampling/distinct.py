"""A check that no example is in a data set twice, as only one copy would be charged for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, StackDataset, Subset, TensorDataset

from dplip.errors import ConfigurationError

Places = np.ndarray[Any, Any]


def require_distinct(dataset: Dataset[Any], size: int) -> None:
    """Refuse repeated indices, data sets that are joined to themselves, rows that share memory, repeats in a list.

    Raises:
        ConfigurationError: an example was seen to be in the data more than once.
    """
    found: dict[Hashable, list[Places]] = defaultdict(list)
    for key, places in _places(dataset, np.arange(size)):
        found[key].append(places)
    for parts in found.values():
        places = np.concatenate(parts)
        copies = len(places) - len(np.unique(places))
        if copies:
            raise ConfigurationError(
                f"dataset={type(dataset).__name__}: {copies} of its {size} entries are examples that are in it already "
                "(an index twice in a Subset, a data set joined to itself, rows that share their memory), and whoever "
                "owns one is charged for one. Keep every example once."
            )


def _places(dataset: Any, positions: Places) -> Iterator[tuple[Hashable, Places]]:
    """Where the examples at these positions come from: a source, and numbers that tell its examples apart."""
    if isinstance(dataset, Subset):
        indices = np.asarray(dataset.indices, dtype=np.int64)
        indices = np.where(indices < 0, indices + len(dataset.dataset), indices)  # type: ignore[arg-type]
        yield from _places(dataset.dataset, indices[positions])
    elif isinstance(dataset, ConcatDataset):
        ends = np.asarray(dataset.cumulative_sizes)
        part = np.searchsorted(ends, positions, side="right")
        for index, inner in enumerate(dataset.datasets):
            start = ends[index - 1] if index else 0
            yield from _places(inner, positions[part == index] - start)
    elif isinstance(dataset, StackDataset):
        parts = dataset.datasets  # the inputs come first, as in a TensorDataset
        yield from _places(next(iter(parts.values())) if isinstance(parts, dict) else parts[0], positions)
    elif isinstance(dataset, list | tuple):
        yield "object", np.array([id(dataset[position]) for position in positions], dtype=np.int64)
    elif isinstance(dataset, TensorDataset) and _has_rows(dataset.tensors[0]):
        rows = dataset.tensors[0]
        yield ("memory", rows.device), rows.data_ptr() + positions * rows.stride(0) * rows.element_size()
    else:
        yield id(dataset), positions


def _has_rows(rows: Tensor) -> bool:
    """Whether each example has its own place in memory."""
    return rows.layout == torch.strided and rows[:1].numel() > 0
