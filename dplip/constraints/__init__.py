"""Projections of weights after a step, which cost no privacy (post-processing)."""

from dplip.constraints.balls import ColumnL1Ball, EntryBall, FrobeniusBall, RowL1Ball, RowL2Ball
from dplip.constraints.base import Constraint, constrain, project
from dplip.constraints.orthogonal import Orthogonal
from dplip.constraints.spectral import SpectralBall

__all__ = [
    "ColumnL1Ball",
    "Constraint",
    "EntryBall",
    "FrobeniusBall",
    "Orthogonal",
    "RowL1Ball",
    "RowL2Ball",
    "SpectralBall",
    "constrain",
    "project",
]
