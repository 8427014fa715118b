"""Certified radii, certified accuracy and proofs of monotonicity."""

from dplip.certificates.accuracy import average_certified_radius, certified_accuracy, certified_curve, correct_radii
from dplip.certificates.monotonicity import Monotonicity, certify_monotonic, feature_radii
from dplip.certificates.plots import certified_accuracy_plot
from dplip.certificates.radii import Certifier, certify, lipschitz, predictions

__all__ = [
    "Certifier",
    "Monotonicity",
    "average_certified_radius",
    "certified_accuracy",
    "certified_accuracy_plot",
    "certified_curve",
    "certify",
    "certify_monotonic",
    "correct_radii",
    "feature_radii",
    "lipschitz",
    "predictions",
]
