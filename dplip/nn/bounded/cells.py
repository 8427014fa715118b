"""Single steps of recurrent layers, each call of which is one use of its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dplip.errors import ConfigurationError
from dplip.nn.bounded.convert import bounds
from dplip.nn.bounded.enforcing import checked_radius
from dplip.nn.bounded.recurrent import recurrence, sequences_of_one
from dplip.nn.bounded.use import trained


class Cell(nn.RNNCellBase):
    """Base of the cells.

    Args:
        input_size, hidden_size, ...: as for torch's cell; the keys of the ``state_dict`` are the same.
        radius: the largest l2 norm of one example's gradient of each weight and each bias, in one call. Calls add up: a
            layer such as ``BoundedLSTM`` pays for a whole sequence once.

    Raises:
        ConfigurationError: in training mode, for an input without an axis of examples.

    Guarantee: in training mode the bound holds for every input, state, cotangent and weight, and an example whose
    gradient is finite and within the radius adds all of it. In evaluation mode the cell is torch's.
    """

    mode: str

    def __init__(self, *arguments: Any, radius: float = 1.0, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.radius = checked_radius(radius)

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        states = () if hx is None else tuple(hx) if self.mode == "LSTM" else (hx,)
        if not any(trained(self, t) for t in (input, *states)):
            return super().forward(input, hx)
        sizes = (self.hidden_size, self.hidden_size)
        if input.ndim != 2 or any(s.shape != (len(input), self.hidden_size) for s in states):
            raise ConfigurationError(
                f"{type(self).__name__}: input and states have shapes {[tuple(t.shape) for t in (input, *states)]}. "
                f"Give (examples, {self.input_size}) and (examples, {self.hidden_size}): one example as x[None]."
            )
        weights = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh, None)
        each, mode = sequences_of_one(input, *states), self._mode()
        with torch.autocast(input.device.type, enabled=False):
            _, *last = recurrence(mode, input[:, None], states, sizes, weights, None, each, checked_radius(self.radius))
        return last[0] if len(last) == 1 else tuple(last)

    def _mode(self) -> str:
        return self.mode

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, radius={self.radius:g}"


@bounds(nn.RNNCell)
class BoundedRNNCell(Cell, nn.RNNCell):
    """``nn.RNNCell`` that bounds each example's gradient of each weight and bias by ``radius`` in l2.

    Arguments and guarantee: those of :class:`dplip.nn.bounded.cells.Cell`.
    """

    mode = "RNN"

    def _mode(self) -> str:
        return f"RNN_{self.nonlinearity.upper()}"


@bounds(nn.LSTMCell)
class BoundedLSTMCell(Cell, nn.LSTMCell):
    """``nn.LSTMCell`` that bounds each example's gradient of each weight and bias by ``radius`` in l2.

    Arguments and guarantee: those of :class:`dplip.nn.bounded.cells.Cell`.
    """

    mode = "LSTM"


@bounds(nn.GRUCell)
class BoundedGRUCell(Cell, nn.GRUCell):
    """``nn.GRUCell`` that bounds each example's gradient of each weight and bias by ``radius`` in l2.

    Arguments and guarantee: those of :class:`dplip.nn.bounded.cells.Cell`.
    """

    mode = "GRU"
