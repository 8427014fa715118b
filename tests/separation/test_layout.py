"""Examples are brought to the front for a function, and its results go back."""

from __future__ import annotations

import pytest
import torch
from helpers.separate import D, T, sequences, weight

from dplip.errors import MixedExamplesError
from dplip.separation import Rows, Watch, current, examples_first

LAYOUTS = {
    "batch first": (lambda x: x, (5, T, D)),
    "time first": (lambda x: x.transpose(0, 1), (5, T, D)),
    "flattened": (lambda x: x.reshape(-1, D), (5, T, D)),
    "time first, flattened": (lambda x: x.transpose(0, 1).reshape(-1, D), (5, T, D)),
    "between heads and windows": (lambda x: x.view(5, 2, 3, D).permute(1, 0, 2, 3).reshape(-1, D), (5, 2, 3, D)),
    "batch third": (lambda x: x.view(5, 2, 3, D).permute(1, 2, 0, 3), (5, 2, 3, D)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_function_sees_the_examples_in_front(name: str) -> None:
    layout, shape = LAYOUTS[name]
    x, seen = sequences(5), []

    def function(t):
        seen.append(t)
        return t @ weight[:, :3]

    with Watch([x], 5) as watch:
        given = layout(x)
        result = examples_first(function, given)
        assert watch.rows(seen[0]) == Rows(0)
        assert watch.rows(result) == watch.rows(given)
    assert seen[0].shape == shape
    assert torch.equal(seen[0].reshape(5, -1), x.reshape(5, -1))
    assert torch.allclose(result, given @ weight[:, :3])


def test_without_a_watch_it_is_the_function() -> None:
    x = sequences(5)
    assert current() is None
    assert examples_first(lambda *t: t, x, weight) == (x, weight)


def test_all_tensors_come_alike_and_all_results_go_back() -> None:
    x = sequences(5)
    with Watch([x], 5):
        a, b = examples_first(lambda p, q: (p + q, p.sum(-1)), x.transpose(0, 1), 2 * x.transpose(0, 1))
    assert torch.allclose(a, 3 * x.transpose(0, 1)) and torch.allclose(b, x.transpose(0, 1).sum(-1))


def test_rows_that_are_alike_count_as_the_examples() -> None:
    x = sequences(5)
    with Watch([x], 5) as watch:
        start = torch.zeros(5, D)
        assert watch.rows(examples_first(torch.relu, start)) == Rows(0) and watch.rows(start) is None
        assert watch.rows(examples_first(torch.relu, torch.randn(5, D))) == Rows(0)
        for other in (torch.eye(5, D), torch.arange(5.0), torch.zeros(D, 5), torch.zeros(())):
            with pytest.raises(MixedExamplesError, match="depends on no example"):
                examples_first(torch.relu, other)
            assert examples_first(torch.relu, other, constant=torch.neg) is not None
        assert not watch.signature.counted
        examples_first(torch.relu, start + torch.ones(5).sum())
        assert watch.signature.counted


def test_what_depends_on_no_example_is_refused_or_expanded() -> None:
    x = sequences(5)
    with Watch([x], 5):
        with pytest.raises(MixedExamplesError, match="depends on no example"):
            examples_first(torch.relu, torch.zeros(T, D))
        with pytest.raises(MixedExamplesError, match="different places"):
            examples_first(torch.add, x, x.transpose(0, 1))
        result = examples_first(torch.add, x.transpose(0, 1), weight[0], expand=True)
    assert torch.allclose(result, x.transpose(0, 1) + weight[0])
