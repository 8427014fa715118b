"""Layers that bound each example's gradient of their own parameters, within one ordinary backward pass."""

from dplip.nn.bounded import functional
from dplip.nn.bounded.attention import BoundedMultiheadAttention
from dplip.nn.bounded.cells import BoundedGRUCell, BoundedLSTMCell, BoundedRNNCell
from dplip.nn.bounded.convert import bound_gradients, bounds_gradients
from dplip.nn.bounded.convolution import (
    BoundedConv1d,
    BoundedConv2d,
    BoundedConv3d,
    BoundedConvTranspose1d,
    BoundedConvTranspose2d,
    BoundedConvTranspose3d,
)
from dplip.nn.bounded.embedding import BoundedEmbedding, BoundedEmbeddingBag
from dplip.nn.bounded.enforcing import JointRadius
from dplip.nn.bounded.fix import fix
from dplip.nn.bounded.hooks import summed
from dplip.nn.bounded.linear import BoundedLinear
from dplip.nn.bounded.lora import freeze_lora_a
from dplip.nn.bounded.normalization import (
    BoundedGroupNorm,
    BoundedInstanceNorm1d,
    BoundedInstanceNorm2d,
    BoundedInstanceNorm3d,
    BoundedLayerNorm,
    BoundedRMSNorm,
)
from dplip.nn.bounded.parameter import BoundedParameter
from dplip.nn.bounded.prelu import BoundedPReLU
from dplip.nn.bounded.recurrent import BoundedGRU, BoundedLSTM, BoundedRNN
from dplip.nn.bounded.use import per_example

__all__ = [
    "BoundedConv1d",
    "BoundedConv2d",
    "BoundedConv3d",
    "BoundedConvTranspose1d",
    "BoundedConvTranspose2d",
    "BoundedConvTranspose3d",
    "BoundedEmbedding",
    "BoundedEmbeddingBag",
    "BoundedGRU",
    "BoundedGRUCell",
    "BoundedGroupNorm",
    "BoundedInstanceNorm1d",
    "BoundedInstanceNorm2d",
    "BoundedInstanceNorm3d",
    "BoundedLSTM",
    "BoundedLSTMCell",
    "BoundedLayerNorm",
    "BoundedLinear",
    "BoundedMultiheadAttention",
    "BoundedPReLU",
    "BoundedParameter",
    "BoundedRMSNorm",
    "BoundedRNN",
    "BoundedRNNCell",
    "JointRadius",
    "bound_gradients",
    "bounds_gradients",
    "fix",
    "freeze_lora_a",
    "functional",
    "per_example",
    "summed",
]
