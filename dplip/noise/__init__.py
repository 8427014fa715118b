"""Calibrated noise, Gaussian and discrete, and its division among parameters."""

from dplip.noise.allocation import split
from dplip.noise.discrete import SecureNoise
from dplip.noise.gaussian import GaussianNoise

__all__ = ["GaussianNoise", "SecureNoise", "split"]
