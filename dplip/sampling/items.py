"""A digest of some items of a data set, which shows whether processes have the same data in the same order."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dplip.runtime.secret import Secret, lent_to_readers

ITEMS = 64
"""The number of items that are looked at."""


def digest_of_some(dataset: Dataset[Any], size: int, secret: int) -> str:
    """A digest of items at positions that follow from a secret; two orders that swap a few items may agree.

    Augmentation draws from global generators whose states follow from the secret, too.
    """
    source, found = Secret(secret), hashlib.sha256()
    positions = np.sort(source.numbers.choice(size, min(ITEMS, size), replace=False))
    with lent_to_readers(source):
        for position in positions.tolist():
            for piece in _pieces(dataset[position]):
                found.update(piece)
    return found.hexdigest()[:16]


def _pieces(item: Any) -> Iterator[bytes]:
    """An item as bytes that differ where it does."""
    if isinstance(item, Mapping):
        for key, value in item.items():
            yield repr(key).encode()
            yield from _pieces(value)
    elif isinstance(item, list | tuple):
        yield f"{len(item)}:".encode()
        for value in item:
            yield from _pieces(value)
    elif isinstance(item, Tensor):
        yield repr((item.dtype, tuple(item.shape))).encode()
        yield item.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    else:
        array = np.asarray(item)  # a number, a text, an image
        yield repr((array.dtype.str, array.shape)).encode()
        yield array.tobytes() if array.dtype != object else re.sub(r" at 0x[0-9a-f]+", "", repr(item)).encode()
