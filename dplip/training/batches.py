"""The protocol of a loader: what a private step needs of it."""

from __future__ import annotations

from typing import Protocol

from dplip.accounting import Event
from dplip.runtime.group import Group


class Batches(Protocol):
    """A loader that hands out the examples of each step, such as :class:`dplip.sampling.PoissonLoader`."""

    @property
    def expected_batch_size(self) -> float: ...

    @property
    def sample_rate(self) -> float: ...

    @property
    def complete(self) -> bool: ...

    @property
    def number(self) -> int: ...

    @property
    def handed_out(self) -> int: ...

    @property
    def logical_batches(self) -> int: ...

    def event(self, noise_multiplier: float) -> Event: ...

    def take(self) -> int: ...

    def join(self, group: Group) -> None: ...
