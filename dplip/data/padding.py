"""Padding of sequences to one public length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from dplip.errors import ConfigurationError
from dplip.validate import whole

IGNORED = -100
"""The target of a place that counts for nothing, as torch's cross-entropy has it."""


class Padding:
    """A collate function that pads sequences to one length, and cuts longer ones.

    The length must be public: the longest of a batch would tell, and change, what is computed for its other examples.

    Args:
        length: the length of every sequence.
        value: what inputs are padded with.
        target: what targets that are as long as their input are padded with.
        mask: add a mask, 1 where the sequence is and 0 where it is padded: to a dictionary under ``"attention_mask"``
            unless it is there already; to a pair (input, target) as ((input, mask), target).
        keys: the entries of a dictionary that are sequences; None: all arrays that have an axis.

    Items are pairs (input, target) or dictionaries; an entry under ``"labels"`` is a target.
    """

    def __init__(
        self,
        length: int,
        *,
        value: float = 0,
        target: float = IGNORED,
        mask: bool = True,
        keys: list[str] | None = None,
    ) -> None:
        self.length = whole("length", length, least=1)
        self.value, self.target, self.mask, self.keys = value, target, mask, keys

    def __call__(self, items: list[Any]) -> Any:
        return default_collate([self._padded(item) for item in items])

    def _padded(self, item: Any) -> Any:
        if isinstance(item, Mapping):
            return self._mapping({k: torch.as_tensor(v) if _is_array(v) else v for k, v in item.items()})
        if not (isinstance(item, tuple | list) and len(item) == 2):
            raise ConfigurationError(
                f"an item is a {type(item).__name__}: give pairs (sequence, target) or dictionaries, or a collate "
                "function of your own."
            )
        x, y = torch.as_tensor(item[0]), torch.as_tensor(item[1])
        if x.ndim == 0:
            raise ConfigurationError("an input is a single number, which has no length: leave padding out")
        target = self._fit(y, self.target) if y.ndim and len(y) == len(x) else y
        filled = self._fit(x, self.value)
        return ((filled, self._mask(len(x))), target) if self.mask else (filled, target)

    def _mapping(self, item: dict[str, Any]) -> dict[str, Any]:
        keys = [k for k, v in item.items() if isinstance(v, Tensor) and v.ndim and k in (self.keys or item)]
        found = dict(item)
        for key in keys:
            if key == "labels" and len(item[key]) != len(item[keys[0]]):
                continue  # several labels of the whole sequence
            padding = self.target if key == "labels" else 0 if key == "attention_mask" else self.value
            found[key] = self._fit(item[key], padding)
        if self.mask and keys and "attention_mask" not in item:
            found["attention_mask"] = self._mask(len(item[keys[0]]))
        return found

    def _fit(self, sequence: Tensor, value: float) -> Tensor:
        short = self.length - len(sequence)
        if short <= 0:
            return sequence[: self.length]
        return torch.cat([sequence, sequence.new_full((short, *sequence.shape[1:]), value)])

    def _mask(self, length: int) -> Tensor:
        return (torch.arange(self.length) < length).long()


def _is_array(value: Any) -> bool:
    return isinstance(value, list | Tensor) or hasattr(value, "__array__")
