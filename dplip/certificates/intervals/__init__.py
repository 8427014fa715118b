"""Interval bounds: boxes of values through a model; importing the package registers their rules."""

from dplip.certificates.intervals import rules
from dplip.certificates.intervals.box import Box, interval
from dplip.certificates.intervals.walk import Boxes

__all__ = ["Box", "Boxes", "interval", "rules"]
