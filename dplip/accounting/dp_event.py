"""The events of a run as those of dp_accounting, which the extra ``accounting`` installs."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from functools import singledispatch
from itertools import groupby
from typing import Any

from dplip.accounting.events import Event
from dplip.accounting.fixed_size import FixedSizeEvent
from dplip.errors import ConfigurationError


def to_dp_event(events: Iterable[Event]) -> Any:
    """A dp_accounting ``DpEvent`` that composes these events, such as the steps of a ledger or of a plan.

    Args:
        events: in the order of time; equal neighbours are merged.

    Raises:
        ConfigurationError: dp_accounting is not installed.

    Guarantee: it is the same mechanism, so any of dp_accounting's accountants may be applied: for add/remove
    neighbours to Poisson batches, for replace-one neighbours to batches of a fixed size.

    >>> from dplip.accounting import GaussianEvent
    >>> event = to_dp_event([GaussianEvent(1.1, 0.01)] * 3)
    >>> event.count, event.event.sampling_probability, event.event.event.noise_multiplier
    (3, 0.01, 1.1)
    """
    dp = dp_accounting()
    parts = [dp.SelfComposedDpEvent(sampled(event, dp), len(list(equal))) for event, equal in groupby(events)]
    return parts[0] if len(parts) == 1 else dp.ComposedDpEvent(parts) if parts else dp.NoOpDpEvent()


@singledispatch
def sampled(event: Event, dp: Any) -> Any:
    gaussian = dp.GaussianDpEvent(event.noise_multiplier)
    return gaussian if event.sample_rate == 1 else dp.PoissonSampledDpEvent(event.sample_rate, gaussian)


@sampled.register
def _fixed_size(event: FixedSizeEvent, dp: Any) -> Any:
    gaussian = dp.GaussianDpEvent(event.noise_multiplier)
    return dp.SampledWithoutReplacementDpEvent(event.size, event.batch_size, gaussian)


def dp_accounting() -> Any:
    try:
        return importlib.import_module("dp_accounting")
    except ImportError:
        raise ConfigurationError("dp_accounting is not installed: pip install 'dplip[accounting]'.") from None
