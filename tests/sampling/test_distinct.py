"""An example that is in the data twice is refused."""

from typing import Any

import pytest
from helpers.runs import X, Y, examples
from torch.utils.data import ConcatDataset, StackDataset, Subset, TensorDataset

from dplip import PoissonLoader
from dplip.errors import ConfigurationError

D = TensorDataset(X, Y)


@pytest.mark.parametrize(
    "data",
    [
        Subset(D, [0] * 5 + [1, 2]),
        Subset(Subset(D, [3, 4, 4]), [1, 2]),
        Subset(D, [-1, 39]),
        ConcatDataset([D, D]),
        ConcatDataset([D, TensorDataset(X, Y.clone())]),
        StackDataset(Subset(D, [0] * 20), Y[:20]),  # type: ignore[arg-type]
        StackDataset(x=Subset(D, [0] * 20), y=Y[:20]),  # type: ignore[arg-type]
        [D[0]] * 20,
        ConcatDataset([Subset(D, range(10)), Subset(D, range(9, 20))]),
        TensorDataset(X[:1].expand(40, 6), Y),
    ],
)
def test_an_example_that_is_in_the_data_twice_is_refused(data):
    with pytest.raises(ConfigurationError, match="Keep every example once"):
        PoissonLoader(data, sample_rate=0.5)


def test_distinct_examples_are_not_refused():
    joined: ConcatDataset[Any] = ConcatDataset([Subset(D, range(10)), Subset(D, range(10, 20)), examples(5)])
    stacked = StackDataset(X, Y)  # type: ignore[arg-type]
    distinct: list[Any] = [D, Subset(D, [5, 3]), joined, stacked, StackDataset(D, D), [D[k] for k in range(len(D))]]
    for data in distinct:
        PoissonLoader(data, sample_rate=0.5)
