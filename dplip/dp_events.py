"""The events of a run in the vocabulary of dp_accounting, and accounting that only dp_accounting has.

Needs the extra ``accounting``.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from functools import singledispatch
from typing import Any

from dplip.accounting import Accountant, Event
from dplip.errors import ConfigurationError
from dplip.fixed_size import FixedSizeEvent


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
    dp = _dp_accounting()
    merged: list[list[Any]] = []
    for event in events:
        if merged and merged[-1][0] == event:
            merged[-1][1] += 1
        else:
            merged.append([event, 1])
    parts = [dp.SelfComposedDpEvent(_sampled(event, dp), count) for event, count in merged]
    return parts[0] if len(parts) == 1 else dp.ComposedDpEvent(parts) if parts else dp.NoOpDpEvent()


def fixed_size_epsilon(*, noise_multiplier: float, batch_size: int, size: int, steps: int, delta: float) -> float:
    """Epsilon of steps whose batches hold exactly ``batch_size`` examples, drawn without replacement.

    It is not what Poisson batches of the same expected size cost. :class:`dplip.sampling.FixedSizeLoader` draws so.

    Args:
        noise_multiplier: std of the noise per unit of how far *replacing* one example moves the sum, which is twice
            one example's bound.
        batch_size, size: examples in a batch and in the data, both public.
        steps: how many.
        delta: in (0, 1).

    Raises:
        ConfigurationError: an argument is out of range.

    Guarantee: an upper bound, for neighbours that differ in one example (``replace_one``): between data of different
    sizes there is no such sampler.

    Source: Wang, Balle, Kasiviswanathan 2019 (arXiv 1808.00087), theorem 27. The
    approximation by a central limit ("GDP") is not offered: it is too low.
    """
    event = FixedSizeEvent(noise_multiplier, batch_size, size)
    return Accountant(neighboring="replace_one").epsilon_after(event, steps, delta)


def pld_epsilon(events: Mapping[Event, int], delta: float) -> float:
    """Epsilon of so many of each event by privacy loss distributions, an upper bound for add/remove neighbours.

    Source: Doroshenko, Ghazi, Kamath, Kumar, Manurangsi 2022 (arXiv 2207.04380); dp_accounting for the implementation.
    """
    dp = _dp_accounting()
    accountant = importlib.import_module("dp_accounting.pld").PLDAccountant()
    accountant.compose(dp.ComposedDpEvent([dp.SelfComposedDpEvent(_sampled(e, dp), n) for e, n in events.items()]))
    return float(accountant.get_epsilon(delta))


@singledispatch
def _sampled(event: Event, dp: Any) -> Any:
    gaussian = dp.GaussianDpEvent(event.noise_multiplier)
    return gaussian if event.sample_rate == 1 else dp.PoissonSampledDpEvent(event.sample_rate, gaussian)


@_sampled.register
def _fixed_size(event: FixedSizeEvent, dp: Any) -> Any:
    gaussian = dp.GaussianDpEvent(event.noise_multiplier)
    return dp.SampledWithoutReplacementDpEvent(event.size, event.batch_size, gaussian)


def _dp_accounting() -> Any:
    try:
        return importlib.import_module("dp_accounting")
    except ImportError:
        raise ConfigurationError("dp_accounting is not installed: pip install 'dplip[accounting]'.") from None
