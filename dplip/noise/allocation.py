"""The division of a step's noise among parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping

from dplip.errors import ConfigurationError
from dplip.validate import require_magnitude


def split(
    sensitivities: Mapping[str, float],
    sizes: Mapping[str, int],
    noise_multiplier: float,
    together: float | None = None,
) -> dict[str, float]:
    """The standard deviation of the noise of each parameter, for the least total noise energy.

    Args:
        sensitivities: l2 bound Delta_l of one example's gradient of each parameter.
        sizes: number d_l of entries of each parameter; the same keys.
        noise_multiplier: sigma, the noise per unit of sensitivity of the joint release.
        together: l2 bound Delta of one example's gradient of all parameters as one vector; None: what follows from
            their own.

    Raises:
        ConfigurationError: the keys differ, or a number is negative or not finite.

    Guarantee: releasing every parameter with its noise is one Gaussian mechanism of noise multiplier sigma, as
    sum Delta_l^2 / s_l^2 = 1 / sigma^2. Of all such deviations these have the least energy sum d_l s_l^2. A parameter
    with Delta_l = 0 gets 0. Given a bound of all together, all get sigma Delta. Then sum |g_l|^2 / s_l^2 is at most
    1 / sigma^2 for all gradients g within it; with less in any parameter it is not, for one that is 0 in the others.

    >>> stds = split({"weight": 1.0, "bias": 1.0}, {"weight": 10000, "bias": 100}, noise_multiplier=1.0)
    >>> {name: round(std, 3) for name, std in stds.items()}
    {'weight': 1.049, 'bias': 3.317}
    """
    if sensitivities.keys() != sizes.keys():
        raise ConfigurationError(
            f"sensitivities of {sorted(sensitivities)}, sizes of {sorted(sizes)}: every parameter needs "
            "both; pass the same names to each"
        )
    require_magnitude("noise_multiplier", noise_multiplier)
    for name, sensitivity in sensitivities.items():
        require_magnitude(f"sensitivities[{name!r}]", sensitivity)
        if sizes[name] < 1:
            raise ConfigurationError(
                f"sizes[{name!r}]={sizes[name]}: a parameter has at least one entry; leave empty ones out"
            )
    if together is not None:
        require_magnitude("together", together)
        return dict.fromkeys(sensitivities, noise_multiplier * together * (1 + 1e-12))
    # In units of the noise, one example moves the release by sqrt(sum Delta_l^2 / s_l^2), to be 1 / sigma.
    # Cauchy-Schwarz: total^2 = (sum Delta_l sqrt(d_l))^2 <= (sum Delta_l^2 / s_l^2) * energy, with equality
    # if Delta_l / s_l is proportional to sqrt(d_l) s_l; hence s_l^2 = sigma^2 * total * Delta_l / sqrt(d_l).
    total = math.fsum(sensitivity * math.sqrt(sizes[name]) for name, sensitivity in sensitivities.items())
    scale = noise_multiplier * math.sqrt(total) * (1 + 1e-12)  # rounding only ever adds noise
    return {name: scale * math.sqrt(value / math.sqrt(sizes[name])) for name, value in sensitivities.items()}
