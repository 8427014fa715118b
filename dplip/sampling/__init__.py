"""Random batches, each with the event that it is."""

from dplip.sampling.fixed_size import FixedSizeLoader
from dplip.sampling.poisson import PoissonLoader

__all__ = ["FixedSizeLoader", "PoissonLoader"]
