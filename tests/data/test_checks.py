"""Checks of a data set before anything is spent on it."""

import pytest
import torch
from helpers.sampling import Items
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from dplip.data import check_dataset
from dplip.errors import ConfigurationError


class Doubled(TensorDataset):
    """A TensorDataset whose items are not its tensors."""

    def __getitem__(self, index: int):
        return self.tensors[0][index] / 0, self.tensors[1][index]


class Endless(IterableDataset):
    def __iter__(self):
        return iter([])


def as_dataset(kind: str, inputs: torch.Tensor, targets: torch.Tensor) -> Dataset:
    return TensorDataset(inputs, targets) if kind == "tensors" else Items(list(zip(inputs, targets, strict=True)))


both = pytest.mark.parametrize("kind", ["tensors", "items"])


@both
@pytest.mark.parametrize("targets", [[0, 1, 2], [0.0, 1.0, 2.0], [[0], [1], [2]]])
def test_sound_data_passes(kind, targets):
    dataset = as_dataset(kind, torch.rand(3, 2), torch.tensor(targets))
    check_dataset(dataset, what="train_dataset", num_classes=3, finite=True)


@both
def test_empty_data_is_refused(kind):
    with pytest.raises(ConfigurationError, match=r"train_dataset=\w+ is empty"):
        check_dataset(as_dataset(kind, torch.rand(0, 2), torch.zeros(0)), what="train_dataset")


@both
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("part", ["input", "target"])
def test_numbers_that_are_not_finite_are_refused_when_asked(kind, bad, part):
    size, first = {"tensors": (9000, 8500), "items": (9, 5)}[kind]  # tensors: past the first chunk
    columns = {"input": torch.rand(size, 2), "target": torch.rand(size)}
    columns[part][first:] = bad
    dataset = as_dataset(kind, columns["input"], columns["target"])
    check_dataset(dataset, what="eval_dataset")
    with pytest.raises(ConfigurationError, match=f"eval_dataset {part} {first}.*finite"):
        check_dataset(dataset, what="eval_dataset", finite=True)


@both
@pytest.mark.parametrize("bad", [-1, 3, 255, 0.5, torch.nan, torch.inf])
def test_labels_out_of_range_are_refused(kind, bad):
    dataset = as_dataset(kind, torch.rand(4, 2), torch.tensor([0, 1, bad, 2]))
    check_dataset(dataset, what="train_dataset")
    with pytest.raises(ConfigurationError, match=r"train_dataset label 2=\S+ is not one class.* 0 to 2"):
        check_dataset(dataset, what="train_dataset", num_classes=3)


@both
def test_one_label_an_example(kind):
    dataset = as_dataset(kind, torch.rand(4, 2), torch.eye(4))
    with pytest.raises(ConfigurationError, match=r"label 0 of shape \(4,\)"):
        check_dataset(dataset, what="train_dataset", num_classes=4)


def test_a_subclass_is_judged_by_its_items():
    dataset = Doubled(torch.ones(2, 2), torch.zeros(2))
    with pytest.raises(ConfigurationError, match="train_dataset input 0"):
        check_dataset(dataset, what="train_dataset", finite=True)


@pytest.mark.parametrize("item", [(1.0, "cat"), 3, (1.0,), (1.0, 2, 3), {"x": 1}])
def test_items_that_are_not_pairs_are_refused(item):
    with pytest.raises(ConfigurationError, match=r"train_dataset\[1\].*not a pair"):
        check_dataset(Items([(1.0, 2), item]), what="train_dataset")


@pytest.mark.parametrize("columns", [1, 3])
def test_a_tensor_dataset_has_two_tensors(columns):
    with pytest.raises(ConfigurationError, match=f"holds {columns} tensors"):
        check_dataset(TensorDataset(*[torch.rand(2)] * columns), what="train_dataset")


def test_data_without_a_length_is_refused():
    with pytest.raises(ConfigurationError, match="train_dataset=Endless has no length"):
        check_dataset(Endless(), what="train_dataset")
