"""Constants that a backward pass computes with once more: they must be what they were in the forward pass."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from dplip.errors import MixedExamplesError


class Unwritten:
    """Tensors that nobody may write to, as examples could be written into them that the watch saw no use of.

    Torch counts the writes to a tensor and to its views; what takes entries out of that count is refused while a pass
    is watched (:mod:`dplip.separation.exits`).

    Args:
        tensors: the tensors, as they are now.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._seen = [(t, t._version) for t in tensors if not t.is_inference()]

    def require(self) -> None:
        """Refuse a backward pass that would compute with other numbers.

        Raises:
            MixedExamplesError: one of them has been written to.
        """
        for t, version in self._seen:
            if t._version != version:
                raise MixedExamplesError(
                    f"a constant of shape {tuple(t.shape)} has been written to after a weight was computed of it, so "
                    "the gradient would be that of another model. Write to a copy: constant.clone()."
                )
