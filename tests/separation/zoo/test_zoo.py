"""Every model of the zoo that mixes is refused, and every one that does not is trained."""

from __future__ import annotations

import pytest
from separation.zoo.cases import Case
from separation.zoo.mixing_modules import MODULES
from separation.zoo.mixing_places import PLACES
from separation.zoo.mixing_states import STATES
from separation.zoo.mixing_values import VALUES

from dplip.errors import ConfigurationError, MixedExamplesError, UnboundedOperationError

MIXING = {**VALUES, **PLACES, **STATES, **MODULES}


@pytest.mark.parametrize("case", MIXING.values(), ids=MIXING)
def test_what_mixes_is_refused(case: Case) -> None:
    with pytest.raises((MixedExamplesError, UnboundedOperationError, ConfigurationError)):
        case.train()
