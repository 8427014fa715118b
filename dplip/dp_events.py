"""The events of a run in the vocabulary of dp_accounting, and accounting that only dp_accounting has.

Needs the extra ``accounting``.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from dplip.accounting import GaussianEvent, require_delta, whole
from dplip.errors import ConfigurationError


def to_dp_event(events: Iterable[GaussianEvent]) -> Any:
    """A dp_accounting ``DpEvent`` that composes these events, such as the steps of a ledger or of a plan.

    Args:
        events: in the order of time; equal neighbours are merged.

    Raises:
        ConfigurationError: dp_accounting is not installed.

    Guarantee: it is the same mechanism, so any of dp_accounting's accountants for add/remove neighbours may be applied.

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
    parts = [dp.SelfComposedDpEvent(_sampled(dp, event), count) for event, count in merged]
    return parts[0] if len(parts) == 1 else dp.ComposedDpEvent(parts) if parts else dp.NoOpDpEvent()


def fixed_size_epsilon(*, noise_multiplier: float, batch_size: int, size: int, steps: int, delta: float) -> float:
    """Epsilon of steps whose batches hold exactly ``batch_size`` examples, drawn without replacement.

    No loader here draws so. The function says what such a sampler of somebody else's costs: it is not that of Poisson
    batches of the same expected size.

    Args:
        noise_multiplier: std of the noise per unit of how far *replacing* one example moves the sum, which is twice
            one example's bound.
        batch_size, size: examples in a batch and in the data, both public.
        steps: how many.
        delta: in (0, 1).

    Raises:
        ConfigurationError: an argument is out of range, or dp_accounting is not installed.

    Guarantee: an upper bound, for neighbours that differ in one example (``replace_one``): between data of different
    sizes there is no such sampler.

    Source: Wang, Balle, Kasiviswanathan 2019 (arXiv 1808.00087), theorem 9; dp_accounting for the implementation. The
    approximation by a central limit ("GDP") is not offered: it is too low.
    """
    dp = _dp_accounting()
    rdp = importlib.import_module("dp_accounting.rdp")
    require_delta(delta)
    whole("steps", steps, least=0)
    if not 1 <= whole("batch_size", batch_size, least=1) <= whole("size", size, least=1):
        raise ConfigurationError(f"batch_size={batch_size}, size={size}: a batch is drawn from the data.")
    if not 0 <= noise_multiplier < math.inf:
        raise ConfigurationError(f"noise_multiplier={noise_multiplier}: this is a finite number, 0 or more.")
    if steps == 0:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    accountant = rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    gaussian = dp.GaussianDpEvent(noise_multiplier)
    event = gaussian if batch_size == size else dp.SampledWithoutReplacementDpEvent(size, batch_size, gaussian)
    accountant.compose(dp.SelfComposedDpEvent(event, steps))
    return max(0.0, float(accountant.get_epsilon(delta)))


def pld_epsilon(events: Mapping[GaussianEvent, int], delta: float) -> float:
    """Epsilon of so many of each event by privacy loss distributions, an upper bound for add/remove neighbours.

    Source: Doroshenko, Ghazi, Kamath, Kumar, Manurangsi 2022 (arXiv 2207.04380); dp_accounting for the implementation.
    """
    dp = _dp_accounting()
    accountant = importlib.import_module("dp_accounting.pld").PLDAccountant()
    accountant.compose(dp.ComposedDpEvent([dp.SelfComposedDpEvent(_sampled(dp, e), n) for e, n in events.items()]))
    return float(accountant.get_epsilon(delta))


def _sampled(dp: ModuleType, event: GaussianEvent) -> Any:
    gaussian = dp.GaussianDpEvent(event.noise_multiplier)
    return gaussian if event.sample_rate == 1 else dp.PoissonSampledDpEvent(event.sample_rate, gaussian)


def _dp_accounting() -> ModuleType:
    try:
        return importlib.import_module("dp_accounting")
    except ImportError:
        raise ConfigurationError("dp_accounting is not installed: pip install 'dplip[accounting]'.") from None
