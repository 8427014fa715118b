"""The sentence of a refusal."""

import pytest
from torch import nn

import dplip
from dplip import Norms, UnboundedOperationError


def refused(model: nn.Module, shape: tuple[int, ...]) -> str:
    """The message of a refusal: it names a path, says what was found and why, and ends with what to do."""
    with pytest.raises(UnboundedOperationError) as caught:
        output, pullback = dplip.propagate(model, shape, Norms(shape, l2=1.0))
        pullback(Norms(output.shape, l2=1.0))
    message = str(caught.value)
    path, _, rest = message.partition(": ")
    assert path and rest, message
    assert message.endswith((".", ").")), message
    assert len(rest.split()) >= 6, message
    return message
