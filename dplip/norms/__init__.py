"""Upper bounds on norms, of values (``Norms``) and of maps (``OperatorNorms``), certified from above."""

from dplip.norms.cache import NormCache
from dplip.norms.convolution import convolution_norms
from dplip.norms.matrix import matrix_norms, spectral_norm
from dplip.norms.operator_norms import OperatorNorms
from dplip.norms.value_norms import Norms

__all__ = ["NormCache", "Norms", "OperatorNorms", "convolution_norms", "matrix_norms", "spectral_norm"]
