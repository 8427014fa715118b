"""Epsilon by numerical composition of privacy losses: PRV by Opacus, PLD by dp_accounting."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from dplip.accounting.dp_event import dp_accounting, sampled
from dplip.accounting.events import Event


def prv_epsilon(events: Mapping[Event, int], delta: float) -> float:
    import numpy as np
    from opacus.accountants import PRVAccountant
    from scipy.integrate import IntegrationWarning

    prv = PRVAccountant()
    prv.history = [(event.noise_multiplier, event.sample_rate, steps) for event, steps in events.items()]
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", IntegrationWarning)  # an unreliable mean would be a wrong number
            bound = float(prv.get_epsilon(delta))
    except (RuntimeError, ValueError, ArithmeticError, IndexError, MemoryError, IntegrationWarning):
        return math.inf
    return bound if math.isfinite(bound) else math.inf


def pld_epsilon(events: Mapping[Event, int], delta: float) -> float:
    """Epsilon of so many of each event by privacy loss distributions, an upper bound for add/remove neighbours.

    Source: Doroshenko, Ghazi, Kamath, Kumar, Manurangsi 2022 (arXiv 2207.04380); dp_accounting for the implementation.
    """
    return float(_composed(tuple(events.items())).get_epsilon(delta))


@lru_cache(maxsize=4)
def _composed(events: tuple[tuple[Event, int], ...]) -> Any:
    """dp_accounting's accountant of these events; kept, as composing takes longer than an epsilon."""
    dp = dp_accounting()
    accountant = importlib.import_module("dp_accounting.pld").PLDAccountant()
    accountant.compose(dp.ComposedDpEvent([dp.SelfComposedDpEvent(sampled(e, dp), n) for e, n in events]))
    return accountant
