"""What a model says of a batch of inputs, and how far each input may move before it says something else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Predictions:
    """The predictions for a batch; iterating gives a dictionary for each.

    Attributes:
        labels: the predicted class of each input: its number, or its level in the schema of a table; of a regression,
            the value in the target's units.
        scores: what the model gave, (batch, classes), or one score an input.
        radii: the certified radius of each prediction; None where there is no certificate.
        norm: the norm of the radii: 1, 2 or inf.
        unit: what a radius of 1 is.
        why: why there are no certificates; None: there are.
    """

    labels: list[Any]
    scores: Tensor
    radii: list[float] | list[None]
    norm: float
    unit: str
    why: str | None

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for label, scores, radius in zip(self.labels, self.scores.tolist(), self.radii, strict=True):
            yield {"label": label, "scores": scores if isinstance(scores, list) else [scores], "radius": radius}
