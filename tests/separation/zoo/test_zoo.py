"""Every model of the zoo that mixes is refused, and every one that does not is trained."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
from separation.zoo.cases import Case, Of, linear
from separation.zoo.mixing_backward import BACKWARD
from separation.zoo.mixing_branches import BRANCHES
from separation.zoo.mixing_late import LATE
from separation.zoo.mixing_modules import MODULES
from separation.zoo.mixing_order import ORDER
from separation.zoo.mixing_places import PLACES
from separation.zoo.mixing_states import STATES
from separation.zoo.mixing_values import VALUES
from separation.zoo.separate_sequences import SEQUENCES
from separation.zoo.separate_vectors import VECTORS
from torch import Tensor

from dplip.errors import ConfigurationError, UnboundedOperationError

MIXING = {**VALUES, **ORDER, **PLACES, **BRANCHES, **STATES, **BACKWARD, **LATE, **MODULES}
SEPARATE = {**VECTORS, **SEQUENCES}

REFUSED = {
    "siamese in one batch": "cat joins tensors along the batch axis",
    "bilinear": "a gradient that no layer bounds",
    "vmap over examples": "select takes single examples out of the batch",
    "mobilenet": "output or gradient for one example depends on the others",  # rounding of a gradient that is 0
    "frames as more examples and back": "each one's gradient cannot be bounded",
    "a scan by hand": "depends on no example",
    "packed sequences": "sort computes across the batch axis",
    "shuffled and put back": "takes rows of the batch by an index",
    "one example after another": "unbind takes single examples out of the batch",
}
"""Models that are refused though they do not mix, and what is not understood of them."""


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_is_refused(name: str) -> None:
    with pytest.raises((UnboundedOperationError, ConfigurationError)):
        MIXING[name].train()


@pytest.mark.parametrize("name", [name for name in SEPARATE if name not in REFUSED])
def test_what_does_not_mix_is_trained(name: str) -> None:
    SEPARATE[name].train()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused(name: str) -> None:
    with pytest.raises((UnboundedOperationError, ConfigurationError), match=REFUSED[name]):
        SEPARATE[name].train()


def _normed(m: Any, x: Tensor, power: float) -> Tensor:
    scores: Tensor = m.head(m.a(x) / m.a(x).norm(power, 1, keepdim=True))
    return scores


def test_numbers_of_other_types_are_other_numbers() -> None:
    for power in (2, 2.0, 2):
        normed: Any = functools.partial(_normed, power=power)
        Case(lambda normed=normed: Of(normed, **linear(6))).train()  # type: ignore[misc]
    SEPARATE["siamese"].train()


def test_batches_of_one_are_as_others() -> None:
    for name in ("perceiver", "vision transformer", "lstm"):
        replace(SEPARATE[name], batch=1, steps=20).train()


def test_no_name_stands_for_two_models() -> None:
    tables = [VALUES, ORDER, PLACES, BRANCHES, STATES, BACKWARD, LATE, MODULES]
    assert sum(map(len, tables)) == len(MIXING) and len(VECTORS) + len(SEQUENCES) == len(SEPARATE)
