"""Per-parameter l2 bounds of one example's gradient, from propagated norms or enforced by layers."""

from dplip.sensitivities.enforced import enforced_sensitivity
from dplip.sensitivities.propagated import Sensitivities, parameter_bounds, sensitivity

__all__ = ["Sensitivities", "enforced_sensitivity", "parameter_bounds", "sensitivity"]
