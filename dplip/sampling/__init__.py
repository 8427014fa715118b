"""Random batches, each with the event that it is."""

from collections.abc import Mapping

from dplip.sampling.fixed_size import FixedSizeLoader
from dplip.sampling.poisson import PoissonLoader

__all__ = ["SAMPLING", "FixedSizeLoader", "PoissonLoader"]

SAMPLING: Mapping[str, type[PoissonLoader] | type[FixedSizeLoader]] = {
    "poisson": PoissonLoader,
    "fixed_size": FixedSizeLoader,
}
"""The loaders by the names that their events give to their sampling."""
