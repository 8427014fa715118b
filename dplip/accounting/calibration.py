"""Calibration: the least noise that keeps a run within its budget."""

import itertools
import math
from collections.abc import Callable, Iterable

from dplip.accounting.accountant import Accountant, create_accountant
from dplip.accounting.events import Event, GaussianEvent
from dplip.errors import ConfigurationError
from dplip.validate import is_number, require_delta, require_target, whole

_LARGEST_NOISE_MULTIPLIER = 1e6
_SMALLEST_NOISE_MULTIPLIER = 1e-3


def get_noise_multiplier(
    *,
    target_epsilon: float,
    target_delta: float,
    sample_rate: float | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    accountant: str = "rdp",
    neighboring: str = "add_remove",
    epsilon_tolerance: float = 0.01,
    event: Callable[[float], Event] | None = None,
    before: Iterable[Event] = (),
) -> float:
    """The least noise multiplier found that keeps a whole run within (target_epsilon, target_delta).

    Args:
        target_epsilon: above 0; infinite: no noise.
        target_delta: in (0, 1).
        sample_rate: sampling probability of each step, in (0, 1].
        epochs: number of epochs of max(1, round(1 / sample_rate)) steps each; give this or ``steps``.
        steps: number of steps.
        accountant: "rdp", "prv" or "pld".
        neighboring: the relation that the multiplier is for.
        epsilon_tolerance: how far below the target epsilon may end.
        event: from a noise multiplier to the event of a step, as a loader's ``event``; in place of ``sample_rate``.
        before: further events, of one step each, that the budget pays for.

    Raises:
        ConfigurationError: an argument is out of range, or no multiplier up to 1e6 reaches the target.

    Guarantee: epsilon of the result never exceeds the target. It is within the tolerance, and within 1% of
    the target, below it, unless even the least multiplier tried, 1e-3, stays within the target.
    """
    if (epochs is None) == (steps is None):
        raise ConfigurationError(f"epochs={epochs}, steps={steps}: a run has one length; give exactly one of the two")
    require_target(target_epsilon)
    require_delta(target_delta, "target_delta")
    if not is_number(epsilon_tolerance) or not 0 < epsilon_tolerance < math.inf:
        raise ConfigurationError(
            f"epsilon_tolerance={epsilon_tolerance!r}: a search needs a positive, finite tolerance"
        )
    accountants = {name: create_accountant(name, neighboring) for name in ("rdp", accountant)}
    if (sample_rate is None) == (event is None):
        raise ConfigurationError(f"sample_rate={sample_rate}, event={event}: either fixes the sampling; give one")
    for spent, held in itertools.product(before, accountants.values()):
        held.count(spent)
    if event is None:
        rate = 0.0 if sample_rate is None else sample_rate

        def event(sigma: float) -> Event:
            return GaussianEvent(sigma, rate)

    unit = event(1.0)
    if epochs is not None:
        steps = whole("epochs", epochs, least=1) * max(1, round(1 / unit.sample_rate))
    count = whole("steps", steps, least=1)
    if target_epsilon == math.inf:
        return 0.0
    tolerance = min(epsilon_tolerance, target_epsilon / 100)
    sigma, factor = 1.0, 0.5
    for held in accountants.values():  # RDP is quick, and its answer starts the search of a slower one

        def epsilon(sigma: float, held: Accountant = held) -> float:
            return held.epsilon_after(event(sigma), count, target_delta)

        sigma, factor = _smallest(epsilon, sigma, factor, target_epsilon, tolerance), 0.9
    return sigma


def _smallest(epsilon: Callable[[float], float], start: float, factor: float, target: float, tolerance: float) -> float:
    """A noise multiplier whose epsilon lies in [target - tolerance, target]: bracket it, then narrow."""
    low = high = start
    below = above = epsilon(high)
    while below > target:
        low, above = high, below
        high /= factor
        if high > _LARGEST_NOISE_MULTIPLIER:
            raise ConfigurationError(
                f"target_epsilon={target}: no noise multiplier up to {_LARGEST_NOISE_MULTIPLIER:.0e} keeps "
                "the run within it; take fewer steps, a smaller sample rate or a larger target"
            )
        below = epsilon(high)
    while above <= target and low > _SMALLEST_NOISE_MULTIPLIER:
        high, below = low, above
        low *= factor
        above = epsilon(low)
    if above <= target:
        return low
    # Invariant: below = epsilon(high) <= target, so the upper end is always safe to return.
    secant = True
    while target - below > tolerance and high - low > 1e-9 * high:
        fraction = 0.5
        if secant and math.isfinite(above) and below > 0:
            fraction = math.log(above / (target - tolerance / 2)) / math.log(above / below)
        middle = low * (high / low) ** fraction
        secant = not secant  # every second step bisects, so that the bracket always closes
        tried = epsilon(middle)
        if tried <= target:
            high, below = middle, tried
        else:
            low, above = middle, tried
    return high
