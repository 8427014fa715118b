"""Every model of the zoo that mixes is refused, and every one that does not is trained."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.zoo.mixing_backward import BACKWARD
from helpers.zoo.mixing_branches import BRANCHES
from helpers.zoo.mixing_late import LATE
from helpers.zoo.mixing_modules import MODULES
from helpers.zoo.mixing_near import NEAR
from helpers.zoo.mixing_order import ORDER
from helpers.zoo.mixing_places import PLACES
from helpers.zoo.mixing_states import STATES
from helpers.zoo.mixing_values import VALUES
from helpers.zoo.separate_sequences import SEQUENCES
from helpers.zoo.separate_vectors import VECTORS
from helpers.zoo.separate_weights import WEIGHTS

from dplip.errors import ConfigurationError, UnboundedOperationError
from dplip.separation import Watch

MIXING = {**VALUES, **ORDER, **PLACES, **BRANCHES, **STATES, **BACKWARD, **LATE, **MODULES, **NEAR}
SEPARATE = {**VECTORS, **SEQUENCES, **WEIGHTS}

REFUSED = {
    "siamese in one batch": "cat joins tensors along the batch axis",
    "vmap over examples": "select takes single examples out of the batch",
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


def test_numbers_of_other_types_are_other_numbers() -> None:
    x, found = torch.randn(5, 6), []
    for power in (2, 2.0):
        with Watch([x], 5) as watch:
            x.norm(power, 1)
        found.append([type(value) for entry, _ in watch.signature.entries for _, value in entry.args])
    assert found[0] != found[1]


def test_batches_of_one_are_as_others() -> None:
    for name in ("perceiver", "vision transformer", "lstm"):
        replace(SEPARATE[name], batch=1, steps=20).train()


def test_no_name_stands_for_two_models() -> None:
    tables = [VALUES, ORDER, PLACES, BRANCHES, STATES, BACKWARD, LATE, MODULES, NEAR]
    assert sum(map(len, tables)) == len(MIXING) and sum(map(len, [VECTORS, SEQUENCES, WEIGHTS])) == len(SEPARATE)
