"""A finished run, read again from its folder: the model, its predictions, and their certified radii."""

from dplip.runs.loaded_run import LoadedRun, load_run
from dplip.runs.predictions import Predictions

__all__ = ["LoadedRun", "Predictions", "load_run"]
