"""Padding: every sequence gets one public length, and what is padded is told."""

from __future__ import annotations

import pytest
import torch

from dplip.data import Padding
from dplip.errors import ConfigurationError


def test_the_length_is_the_public_one() -> None:
    (x, mask), y = Padding(5)([(torch.arange(1, 4), 0), (torch.arange(1, 3), 1)])
    assert x.tolist() == [[1, 2, 3, 0, 0], [1, 2, 0, 0, 0]] and y.tolist() == [0, 1]
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]
    (x, mask), _ = Padding(2)([([1, 2, 3], 0)])
    assert x.tolist() == [[1, 2]] and mask.tolist() == [[1, 1]]


def test_targets_as_long_as_their_sequence_are_padded_with_what_is_ignored() -> None:
    x, y = Padding(3, value=9, mask=False)([(torch.arange(2), torch.arange(2)), (torch.arange(3), torch.arange(3))])
    assert x.tolist() == [[0, 1, 9], [0, 1, 2]] and y.tolist() == [[0, 1, -100], [0, 1, 2]]


def test_dictionaries_are_padded_entry_by_entry() -> None:
    batch = Padding(4)([{"input_ids": [1, 2], "labels": 1}, {"input_ids": [3], "labels": 0}])
    assert batch["input_ids"].tolist() == [[1, 2, 0, 0], [3, 0, 0, 0]] and batch["labels"].tolist() == [1, 0]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]
    given = Padding(3)([{"input_ids": [1, 2], "attention_mask": [1, 1], "labels": [5, 6]}])
    assert given["attention_mask"].tolist() == [[1, 1, 0]] and given["labels"].tolist() == [[5, 6, -100]]
    several = Padding(3)([{"input_ids": [1, 2], "labels": [1.0, 0.0, 1.0, 1.0]}])
    assert several["labels"].shape == (1, 4)


def test_vectors_along_a_sequence_are_padded_too() -> None:
    (x, _), _ = Padding(3)([(torch.ones(2, 4), 0)])
    assert x.shape == (1, 3, 4) and not x[0, 2].any()


@pytest.mark.parametrize("item", [1, (1, 2, 3), (torch.tensor(1.0), 0)])
def test_what_has_no_length_is_refused(item: object) -> None:
    with pytest.raises(ConfigurationError):
        Padding(3)([item])
