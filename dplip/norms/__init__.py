"""Certified upper bounds on the norms of values (``Norms``) and of maps (``OperatorNorms``)."""

from dplip.norms.cache import NormCache
from dplip.norms.convolution import convolution_norms
from dplip.norms.matrix import matrix_norms, of_fixed, spectral_norm
from dplip.norms.operator_norms import OperatorNorms
from dplip.norms.value_norms import REDUCTION_SLACK, Bound, Norms, below, largest, least, root, times

__all__ = [
    "REDUCTION_SLACK",
    "Bound",
    "NormCache",
    "Norms",
    "OperatorNorms",
    "below",
    "convolution_norms",
    "largest",
    "least",
    "matrix_norms",
    "of_fixed",
    "root",
    "spectral_norm",
    "times",
]
