"""Checks of a run's settings."""

from __future__ import annotations

import warnings

from dplip.accounting import Budget, get_noise_multiplier
from dplip.certificates.radii import dual_of
from dplip.errors import ConfigurationError
from dplip.sampling import SAMPLING
from dplip.sampling.loader import SampledLoader
from dplip.training.mean_release import MeanRelease

PART = 2048
"""The default of ``max_physical_batch_size``."""


def check_settings(
    target_epsilon: float | None,
    noise_multiplier: float | None,
    epochs: int,
    sampling: str,
    norm: float,
    ema_decay: float | None,
    checkpoint_every: int | None,
) -> None:
    """Refuse settings that no run can be made from (arguments as of :class:`dplip.DPLipTrainer`).

    Raises:
        ConfigurationError: names the argument.
    """
    if (target_epsilon is None) == (noise_multiplier is None):
        raise ConfigurationError(
            f"target_epsilon={target_epsilon}, noise_multiplier={noise_multiplier}: give one of the two."
        )
    if ema_decay is not None and not 0 < ema_decay < 1:
        raise ConfigurationError(f"ema_decay={ema_decay}: the decay of an average lies in (0, 1).")
    if not isinstance(epochs, int) or epochs < 1:
        raise ConfigurationError(f"epochs={epochs}: give a whole number of passes over the data.")
    if sampling not in SAMPLING:
        raise ConfigurationError(f"sampling={sampling!r}: choose one of {list(SAMPLING)}.")
    dual_of(norm)  # refuses a norm that has no certificates
    if checkpoint_every is not None and (not isinstance(checkpoint_every, int) or checkpoint_every < 1):
        raise ConfigurationError(f"checkpoint_every={checkpoint_every}: give a whole number of steps, or None.")


def noise_for(
    budget: Budget, loader: SampledLoader, steps: int, accountant: str, neighboring: str, mean: MeanRelease | None
) -> float:
    """The noise multiplier of steps that spend a budget, together with the release of a mean before them."""
    return get_noise_multiplier(
        target_epsilon=budget.epsilon,
        target_delta=budget.delta,
        event=loader.event,
        steps=steps,
        accountant=accountant,
        neighboring=neighboring,
        before=[] if mean is None else [mean.event(loader)],
    )


def warn_of_delta(target_delta: float, public_size: int) -> None:
    """Warn of a delta that is so large that it promises nothing."""
    if target_delta >= 1 / public_size:
        warnings.warn(
            f"target_delta={target_delta:g}: with {public_size} examples, so large a delta allows to "
            "publish one of them whole. Choose one well below 1 / examples.",
            stacklevel=3,
        )
