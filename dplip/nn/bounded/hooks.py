"""A forward hook that makes torch's layers sum their gradients over a batch in blocks."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from dplip.nn.bounded.convolution import BoundedConv2d, ConvolutionGradients
from dplip.nn.bounded.linear import BoundedLinear, LinearGradients
from dplip.rules import SUMMED


def summed(module: Any, args: tuple[Any, ...], output: Any) -> Any:
    """A forward hook for torch's layers: it keeps the output, and makes the backward pass sum in blocks."""
    bounded = type(module).forward in (BoundedLinear.forward, BoundedConv2d.forward)
    trained = any(p is not None and p.requires_grad for p in (module.weight, module.bias))
    done = bounded and module.training
    if done or not (trained and isinstance(output, Tensor) and output.requires_grad):
        return None
    if isinstance(module, nn.Linear):
        return LinearGradients.apply(args[0], module.weight, module.bias, output.detach(), None, None)
    x, padding = args[0], module.padding
    if module.padding_mode != "zeros" or isinstance(padding, str):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x, padding = F.pad(x, module._reversed_padding_repeated_twice, mode=mode), (0,) * (x.ndim - 2)
    settings = (module.stride, padding, module.dilation, module.groups)
    return ConvolutionGradients.apply(x, module.weight, module.bias, output.detach(), None, None, 1.0, settings)


SUMMED.update({nn.Linear.forward, BoundedLinear.forward})
SUMMED.update({nn.Conv1d.forward, nn.Conv2d.forward, BoundedConv2d.forward})
