"""What a model without a certificate is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from dplip.errors import UnboundedOperationError
from dplip.nn.bounded import bounds_gradients


@contextmanager
def certifying(model: nn.Module) -> Iterator[None]:
    """A context whose refusals of operations say, of an enforced model, that it has no certificates."""
    try:
        yield
    except UnboundedOperationError as wrong:
        if not bounds_gradients(model):
            raise
        raise UnboundedOperationError(
            f"{wrong} (With layers that bound their own gradients a model of any code trains privately, but only "
            "bounds that are propagated give a certificate: build it of operations that have rules, docs/models.md.)"
        ) from None
