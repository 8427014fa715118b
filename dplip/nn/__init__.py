"""Layers that torch lacks; each module has a rule."""

from dplip.nn.attention import DistanceAttention
from dplip.nn.ball import BallProjection
from dplip.nn.bounded import (
    BoundedConv1d,
    BoundedConv2d,
    BoundedConv3d,
    BoundedConvTranspose1d,
    BoundedConvTranspose2d,
    BoundedConvTranspose3d,
    BoundedEmbedding,
    BoundedEmbeddingBag,
    BoundedGroupNorm,
    BoundedGRU,
    BoundedGRUCell,
    BoundedInstanceNorm1d,
    BoundedInstanceNorm2d,
    BoundedInstanceNorm3d,
    BoundedLayerNorm,
    BoundedLinear,
    BoundedLSTM,
    BoundedLSTMCell,
    BoundedMultiheadAttention,
    BoundedParameter,
    BoundedPReLU,
    BoundedRMSNorm,
    BoundedRNN,
    BoundedRNNCell,
    JointRadius,
    bound_gradients,
    freeze_lora_a,
    per_example,
)
from dplip.nn.center import Center
from dplip.nn.clamp import Clamp
from dplip.nn.frozen import Frozen
from dplip.nn.gradient_ball import GradientBall
from dplip.nn.groupsort import FullSort, GroupSort, MaxMin
from dplip.nn.householder import Householder
from dplip.nn.linear import OrthogonalConv2d, OrthogonalLinear, SpectralConv2d, SpectralLinear
from dplip.nn.linf.linf_distance import LInfDistance, LInfDistance2d, relax
from dplip.nn.linf.sortnet import SortNetLinear
from dplip.nn.log_compression import LogCompression
from dplip.nn.low_pass import ChannelLowPass, LowPass
from dplip.nn.monotonic import Monotonic
from dplip.nn.opponent import OpponentColors
from dplip.nn.pooling import ScaledL2NormPool2d
from dplip.nn.private_mean import PrivateMean
from dplip.nn.roll_channels import RollChannels
from dplip.nn.scattering import Scattering2d
from dplip.nn.shift import Shift
from dplip.nn.splines.constraints import SplineProj
from dplip.nn.splines.spline import CoefficientSpline, LinearSpline
from dplip.nn.tabular_input import TabularInput
from dplip.nn.views import MeanOverViews, Mirror
from dplip.nn.whitening import Whitening

__all__ = [
    "BallProjection",
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
    "Center",
    "ChannelLowPass",
    "Clamp",
    "CoefficientSpline",
    "DistanceAttention",
    "Frozen",
    "FullSort",
    "GradientBall",
    "GroupSort",
    "Householder",
    "JointRadius",
    "LInfDistance",
    "LInfDistance2d",
    "LinearSpline",
    "LogCompression",
    "LowPass",
    "MaxMin",
    "MeanOverViews",
    "Mirror",
    "Monotonic",
    "OpponentColors",
    "OrthogonalConv2d",
    "OrthogonalLinear",
    "PrivateMean",
    "RollChannels",
    "ScaledL2NormPool2d",
    "Scattering2d",
    "Shift",
    "SortNetLinear",
    "SpectralConv2d",
    "SpectralLinear",
    "SplineProj",
    "TabularInput",
    "Whitening",
    "bound_gradients",
    "freeze_lora_a",
    "per_example",
    "relax",
]
