"""Loaders of random batches, which name the privacy event of a step."""

from collections.abc import Mapping

from dplip.sampling.fixed_size import FixedSizeLoader
from dplip.sampling.poisson import PoissonLoader

__all__ = ["SAMPLING", "FixedSizeLoader", "PoissonLoader"]

SAMPLING: Mapping[str, type[PoissonLoader] | type[FixedSizeLoader]] = {
    "poisson": PoissonLoader,
    "fixed_size": FixedSizeLoader,
}
"""The loaders, by the names of their sampling."""
