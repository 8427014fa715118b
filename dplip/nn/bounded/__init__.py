"""Layers that bound each example's gradient of their own parameters, within one ordinary backward pass."""

from dplip.nn.bounded.convert import bound_gradients, bounds_gradients
from dplip.nn.bounded.convolution import BoundedConv2d
from dplip.nn.bounded.hooks import summed
from dplip.nn.bounded.linear import BoundedLinear

__all__ = ["BoundedConv2d", "BoundedLinear", "bound_gradients", "bounds_gradients", "summed"]
