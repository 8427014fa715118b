"""Public rows: random examples, on which a model and its trace are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dplip.norms.value_norms import FLOATS
from dplip.propagation.checks import bare
from dplip.propagation.graph import Root
from dplip.propagation.guards import has_foreign_code
from dplip.runtime.mixing import close, gradients_in, seeded

AGREED = 1e-3
"""The largest relative difference of a model and its trace that counts as rounding."""


def rows_of(root: nn.Module, count: int, input_shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
    """Random examples, the same at every call, in the model's dtype and on its device."""
    like = next((t for t in (*root.parameters(), *root.buffers()) if t.dtype in FLOATS), torch.zeros(0))
    generator = torch.Generator().manual_seed(count)
    x = torch.randn((count, *input_shape), generator=generator, dtype=like.dtype) * scale
    return x.to(like.device).requires_grad_()


def sent_back(result: Tensor, x: Tensor, root: nn.Module) -> list[Tensor]:
    """The gradients of a fixed combination of the outputs in the input and all trainable parameters."""
    wanted = [x, *(p for p in root.parameters() if p.requires_grad)]
    if not result.requires_grad:
        return []
    weights = torch.linspace(-1.0, 1.5, result.numel(), dtype=result.dtype, device=result.device)
    found = gradients_in(result, wanted, weights.reshape(result.shape))
    return [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)]


def agree(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """Whether the outputs and gradients of two runs on the same rows agree."""
    return len(ours) == len(theirs) and all(close(a, b, AGREED) for a, b in zip(ours, theirs, strict=True))


@contextmanager
def other_values(root: nn.Module) -> Iterator[None]:
    """A context in which all weights and buffers hold other numbers; the old ones are neither copied nor written to."""
    held = {id(t): t for t in (*root.parameters(), *root.buffers()) if t.dtype in FLOATS and not t.is_inference()}
    kept = [(t, t.data) for t in held.values()]
    try:
        for t, old in kept:
            t.data = old * (1 + torch.rand_like(old) / 2) + torch.rand_like(old) / 8
        yield
    finally:
        for t, old in kept:
            t.data = old


class PublicRows:
    """Two fixed random examples, on which a model and its trace are compared at every step.

    The comparison finds changes that guards miss, since a forward may read a global, a clock or the environment.

    Args:
        root, input_shape: as for :func:`probe`.
    """

    def __init__(self, root: Root, input_shape: tuple[int, ...]) -> None:
        self._root, self._x = root, rows_of(root, 2, input_shape)

    def of_model(self, gradients: bool = True) -> list[Tensor] | None:
        """The model's output and gradients; None where all classes are torch's or dplip's, so that guards suffice."""
        return self.of(self._root, gradients) if has_foreign_code(self._root) else None

    def of(self, run: Callable[[Tensor], Any], gradients: bool = True) -> list[Tensor]:
        """The output and gradients of a run of the model or of its trace; empty if the output is no tensor."""
        like = next((t for t in (*self._root.parameters(), *self._root.buffers()) if t.dtype in FLOATS), self._x)
        if (like.dtype, like.device) != (self._x.dtype, self._x.device):
            self._x = self._x.detach().to(like).requires_grad_()
        modes = torch.inference_mode(False), torch.autocast(self._x.device.type, enabled=False)
        with bare(self._root), seeded(self._x.device), modes[0], modes[1], torch.set_grad_enabled(gradients):
            result = run(self._x.clone())  # a clone may be changed in place
            if not isinstance(result, Tensor):
                return []
            return [result, *sent_back(result, self._x, self._root)] if gradients else [result]
