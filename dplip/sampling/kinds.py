"""The kinds of sampling, by name."""

from __future__ import annotations

from collections.abc import Mapping

from dplip.sampling.fixed_size import FixedSizeLoader
from dplip.sampling.poisson import PoissonLoader

SAMPLING: Mapping[str, type[PoissonLoader] | type[FixedSizeLoader]] = {
    "poisson": PoissonLoader,
    "fixed_size": FixedSizeLoader,
}
"""The loaders by the names that their events give to their sampling."""
