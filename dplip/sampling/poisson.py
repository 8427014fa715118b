"""Poisson batches: each example is in a batch with the same probability, independently of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from dplip.accounting import GaussianEvent
from dplip.errors import ConfigurationError
from dplip.sampling.loader import SampledLoader, length
from dplip.validate import whole


class PoissonLoader(SampledLoader):
    """Poisson batches: each example is in each batch with the same public probability, independently of the others.

    Args:
        dataset: map-style; a ``TensorDataset``, or a ``Subset`` of one, is served by indexing its tensors.
        sample_rate: probability q in (0, 1] of an example to be in a batch; give this or ``batch_size``.
        batch_size: expected logical batch size, so that q = batch_size / public_size.
        public_size: public size of the data; by default its length, which is then treated as public.
        steps_per_epoch: logical batches per iteration; by default max(1, round(1 / q)).
        max_physical_batch_size: most rows handed out at a time; by default any number.
        collate_fn: makes a batch of a list of items; PyTorch's default_collate by default.
        seed: fixes the draws, for tests. By default they come from a generator of the loader's own with 128 bits of
            entropy from the operating system, which ``torch.manual_seed`` does not touch.

    Raises:
        ConfigurationError: the data are empty or not map-style, q is not in (0, 1], or a count is below 1.

    Guarantee: in each logical batch every example is present with probability q (up to 2^-53), independently
    of all others and of all other batches: the sampling that an event of rate q stands for.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        sample_rate: float | None = None,
        batch_size: float | None = None,
        public_size: int | None = None,
        steps_per_epoch: int | None = None,
        max_physical_batch_size: int | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        seed: int | None = None,
    ) -> None:
        size = length(dataset)
        known = whole("public_size", size if public_size is None else public_size, least=1)
        rate, expected = _rate(sample_rate, batch_size, known)
        super().__init__(
            dataset,
            public_size=known,
            sample_rate=rate,
            expected_batch_size=expected,
            steps_per_epoch=steps_per_epoch,
            max_physical_batch_size=max_physical_batch_size,
            collate_fn=collate_fn,
            seed=seed,
        )

    @classmethod
    def from_data_loader(
        cls,
        data_loader: DataLoader[Any],
        *,
        public_size: int | None = None,
        max_physical_batch_size: int | None = None,
        seed: int | None = None,
    ) -> PoissonLoader:
        """A Poisson loader over the data of a PyTorch loader, with its batch size as the expected one.

        Its shuffling or its order is replaced; its workers are not used.

        Raises:
            ConfigurationError: the loader samples in a way that would be lost.
        """
        if not isinstance(data_loader, DataLoader):
            raise ConfigurationError(
                f"data_loader={type(data_loader).__name__}: give a DataLoader, or its data to a PoissonLoader"
            )
        length(data_loader.dataset)
        batch_size, sampler = data_loader.batch_size, data_loader.sampler
        if batch_size is None or type(data_loader.batch_sampler) is not BatchSampler:
            raise ConfigurationError(
                f"batch_size={batch_size}, batch_sampler={type(data_loader.batch_sampler).__name__}: the "
                "examples of a private step are drawn by Poisson sampling; give the DataLoader a "
                "batch_size and no batch_sampler"
            )
        plain = type(sampler) is SequentialSampler or (
            type(sampler) is RandomSampler
            and not sampler.replacement
            and sampler.num_samples == len(sampler.data_source)
        )
        if not plain or getattr(sampler, "data_source", None) is not data_loader.dataset:
            raise ConfigurationError(
                f"sampler={type(sampler).__name__}: a private step includes every example with the same "
                "probability; use shuffle=True or no sampler. Leave examples out by a Subset that names no index twice"
            )
        return cls(
            data_loader.dataset,
            batch_size=batch_size,
            public_size=public_size,
            max_physical_batch_size=max_physical_batch_size,
            collate_fn=data_loader.collate_fn,
            seed=seed,
        )

    def event(self, noise_multiplier: float) -> GaussianEvent:
        return GaussianEvent(noise_multiplier, self.sample_rate)

    def event_of_all(self, noise_multiplier: float) -> GaussianEvent:
        return GaussianEvent(noise_multiplier, 1.0)

    def _draw(self) -> np.ndarray[Any, Any]:
        # float64: at 24 bits, a sample rate of 1e-6 would come out 1.3% too high.
        return np.flatnonzero(self._generator.random(self._size) < self.sample_rate)


def _rate(sample_rate: float | None, batch_size: float | None, public_size: int) -> tuple[float, float]:
    if (sample_rate is None) == (batch_size is None):
        raise ConfigurationError(
            f"sample_rate={sample_rate}, batch_size={batch_size}: either fixes the other; give one of the two"
        )
    if batch_size is not None:
        if not 0 < batch_size <= public_size:
            raise ConfigurationError(
                f"batch_size={batch_size}, public_size={public_size}: a batch is drawn from the data; choose "
                "an expected batch size above 0 and at most the size of the data"
            )
        return float(batch_size) / public_size, float(batch_size)
    if sample_rate is None or not 0 < sample_rate <= 1:
        raise ConfigurationError(
            f"sample_rate={sample_rate}: a sampling probability lies in (0, 1]; pass such a number"
        )
    return float(sample_rate), float(sample_rate) * public_size
