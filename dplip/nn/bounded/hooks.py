"""A forward hook that makes torch's layers sum their gradients over a batch in blocks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dplip.nn.bounded.convolution import BoundedConv1d, BoundedConv2d, ConvolutionGradients, settings_of
from dplip.nn.bounded.linear import BoundedLinear, LinearGradients
from dplip.nn.bounded.parameter import BoundedParameter
from dplip.rules import SUMMED

BOUNDED = (BoundedLinear.forward, BoundedConv1d.forward, BoundedConv2d.forward)


def summed(module: Any, args: tuple[Any, ...], output: Any) -> Any:
    """A forward hook for torch's layers: it keeps the output, and makes the backward pass sum in blocks."""
    done = type(module).forward in BOUNDED and module.training
    if done or any(isinstance(p, BoundedParameter) for p in module.parameters()):
        return None
    trained = any(p is not None and p.requires_grad for p in (module.weight, module.bias))
    if not (trained and isinstance(output, Tensor) and output.requires_grad):
        return None
    if isinstance(module, nn.Linear):
        return LinearGradients.apply(args[0], module.weight, module.bias, output.detach(), None, None)
    x, settings = settings_of(module, args[0], (0,) * len(module.kernel_size))
    return ConvolutionGradients.apply(x, module.weight, module.bias, output.detach(), None, None, settings)


SUMMED.update({nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward, *BOUNDED})
