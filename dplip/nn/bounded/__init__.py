"""Layers that bound each example's gradient of their own parameters, within one ordinary backward pass."""

from dplip.nn.bounded.convert import bound_gradients
from dplip.nn.bounded.convolution import (
    BoundedConv1d,
    BoundedConv2d,
    BoundedConv3d,
    BoundedConvTranspose1d,
    BoundedConvTranspose2d,
    BoundedConvTranspose3d,
)
from dplip.nn.bounded.hooks import summed
from dplip.nn.bounded.linear import BoundedLinear

__all__ = [
    "BoundedConv1d",
    "BoundedConv2d",
    "BoundedConv3d",
    "BoundedConvTranspose1d",
    "BoundedConvTranspose2d",
    "BoundedConvTranspose3d",
    "BoundedLinear",
    "bound_gradients",
    "summed",
]
