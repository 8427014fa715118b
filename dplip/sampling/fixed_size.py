"""Batches of a fixed size, drawn without replacement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from dplip.accounting import FixedSizeEvent
from dplip.errors import ConfigurationError
from dplip.sampling.loader import SampledLoader, length
from dplip.validate import whole


class FixedSizeLoader(SampledLoader):
    """Batches of exactly ``batch_size`` examples, drawn without replacement and anew for every step.

    The size of the data is public: neighbours are of one size (``replace_one``). Costs more than
    :class:`PoissonLoader` at the same noise; it is for models and hardware that want batches of one shape.

    Args:
        dataset: map-style; a ``TensorDataset``, or a ``Subset`` of one, is served by indexing its tensors.
        batch_size: examples in every logical batch, at most the size of the data.
        public_size: the length of the data, or None.
        steps_per_epoch, max_physical_batch_size, collate_fn, seed: as of :class:`PoissonLoader`.

    Raises:
        ConfigurationError: the data are empty or not map-style, or the batch size is no whole number from 1 to the
            length of the data.

    Guarantee: each logical batch is a uniformly chosen subset of that size (up to 2^-64), independent of all other
    batches: the sampling that a :class:`dplip.accounting.FixedSizeEvent` stands for.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        batch_size: int,
        public_size: int | None = None,
        steps_per_epoch: int | None = None,
        max_physical_batch_size: int | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        seed: int | None = None,
    ) -> None:
        size, self._batch_size = length(dataset), whole("batch_size", batch_size, least=1)
        if public_size not in (None, size):
            raise ConfigurationError(
                f"public_size={public_size}, len(dataset)={size}: batches of a fixed size are private among data of "
                "one size, which is public; leave public_size out, or sample by PoissonLoader"
            )
        FixedSizeEvent(0.0, self._batch_size, size)  # refuses an invalid event
        super().__init__(
            dataset,
            public_size=size,
            sample_rate=self._batch_size / size,
            expected_batch_size=float(self._batch_size),
            steps_per_epoch=steps_per_epoch,
            max_physical_batch_size=max_physical_batch_size,
            collate_fn=collate_fn,
            seed=seed,
        )

    def event(self, noise_multiplier: float) -> FixedSizeEvent:
        return FixedSizeEvent(noise_multiplier, self._batch_size, self.public_size)

    def event_of_all(self, noise_multiplier: float) -> FixedSizeEvent:
        return FixedSizeEvent(noise_multiplier, self.public_size, self.public_size)

    def _draw(self) -> np.ndarray[Any, Any]:
        return np.sort(self._generator.choice(self._size, self._batch_size, replace=False, shuffle=False))
