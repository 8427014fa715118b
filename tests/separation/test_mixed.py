"""Functions that mix examples, or treat them by their place or number, are refused."""

from __future__ import annotations

import re

import pytest
import torch
from helpers.mixed import COUNTED, MIXED
from helpers.separate import C, D, T, images, sequences
from torch import nn

from dplip.errors import ConfigurationError, MixedExamplesError
from dplip.separation import Rows, Template, Watch


def watched(function, x):
    x = x.requires_grad_() if x.is_floating_point() else x
    with Watch([x], len(x)) as watch:
        result = function(x)
    return watch, result


@pytest.mark.parametrize(("rows", "function"), [pytest.param(r, f, id=n) for n, r, f in MIXED])
def test_what_mixes_examples_is_refused(rows, function) -> None:
    try:
        watch, result = watched(function, rows(5))
    except MixedExamplesError as error:
        assert re.fullmatch(r".+: .+\. .+\.\)?", str(error), re.S)
    else:
        assert watch.rows(result) != Rows(0)


@pytest.mark.parametrize("function", [pytest.param(f, id=n) for n, f in COUNTED.items()])
def test_what_depends_on_the_number_of_examples_is_refused(function) -> None:
    with pytest.raises(MixedExamplesError):
        Template.of([(watched(function, sequences(n))[0].signature, n) for n in (5, 7)])


def test_an_error_names_the_module_the_operator_and_a_remedy() -> None:
    model = nn.Sequential(nn.Conv2d(C, C, 1), nn.Sequential(nn.ReLU(), nn.BatchNorm2d(C)))
    x = images(5)
    found = r"^1\.1 \(BatchNorm2d\): native_batch_norm normalizes .*GroupNorm"
    with pytest.raises(MixedExamplesError, match=found), Watch([x], 5, model):
        model(x)


def test_a_number_read_off_examples_has_a_remedy() -> None:
    one = sequences(1)
    with Watch([one], 1), pytest.raises(MixedExamplesError, match=r"torch\.where"):
        one.mean().item()


def test_nothing_is_written_when_a_write_is_refused() -> None:
    buffer = torch.zeros(5, D)
    x = sequences(5)
    with pytest.raises(MixedExamplesError, match="constant"), Watch([x], 5):
        buffer.copy_(x[:, 0])
    assert not buffer.any()


def test_an_alias_of_examples_without_a_mark_is_known_by_its_memory() -> None:
    x = sequences(5)
    before, one = x.view(-1), x[0]
    with Watch([x], 5) as watch:
        y = x * 2
        copy = nn.Parameter(y.transpose(0, 1).detach())
        assert watch.rows(copy) == Rows(1)
        assert watch.rows(before) == Rows(0, 1, T * D)
        with pytest.raises(MixedExamplesError, match="memory"):
            watch.rows(one)


def test_a_tensor_computed_elsewhere_is_refused() -> None:
    x = sequences(5).requires_grad_()
    elsewhere = x * 2
    with pytest.raises(MixedExamplesError, match="outside of this forward pass"), Watch([x], 5):
        torch.relu(elsewhere)


def test_a_watch_stands_alone_and_counts_its_inputs() -> None:
    x = sequences(5)
    with pytest.raises(ConfigurationError, match="axis 0"):
        Watch([x], 4)
    with Watch([x], 5), pytest.raises(ConfigurationError, match="already"), Watch([x], 5):
        raise AssertionError
    with torch.inference_mode(), pytest.raises(ConfigurationError, match="inference_mode"), Watch([x], 5):
        raise AssertionError


def test_a_later_watch_refuses_the_examples_of_an_earlier_one() -> None:
    x, w = sequences(5), sequences(5)
    with Watch([x], 5):
        y = x * 2
    with Watch([w], 5), pytest.raises(MixedExamplesError, match="earlier pass"):
        w + y
