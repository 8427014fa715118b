"""A weighted sum of losses, one for each of a model's outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dplip.errors import ConfigurationError
from dplip.losses.base import Loss, bounded
from dplip.losses.structure import Structure, is_shape, joint, mapped
from dplip.norms import Norms


class Heads(Loss):
    """``sum of weight * loss(outputs[key], targets[key])`` over the heads of a model.

    Args:
        heads: for each key, a name of a dict or a place in a tuple, a loss of :mod:`dplip.losses`, or that and its
            public weight, as ``{"digit": CrossEntropy(), "angle": (Huber(), 0.5)}``.
        targets: for each key whose targets have another name, that name.

    Outputs and targets are both dicts or both tuples; what no key names is left out. A head's own ``max_gradient`` and
    ``normalize`` act on its own gradient, before the weight.

    Each head's gradient lies in entries of its own and is its loss's times the weight, so with ``n_i`` the norms of
    head i, all together have ``l1 = sum w_i n_i``, ``l2^2 = sum (w_i n_i)^2`` and ``linf = max w_i n_i``.
    """

    def __init__(
        self,
        heads: Mapping[Any, Loss | tuple[Loss, float]],
        max_gradient: float | None = None,
        normalize: bool = False,
        *,
        targets: Mapping[Any, Any] | None = None,
    ) -> None:
        super().__init__(max_gradient, normalize)
        pairs = {key: head if isinstance(head, tuple) else (head, 1.0) for key, head in dict(heads).items()}
        for key, pair in pairs.items():
            if len(pair) != 2 or not isinstance(pair[0], Loss):
                raise ConfigurationError(f"heads[{key!r}]={pair}: give a loss of dplip.losses, or (loss, weight).")
            if not (math.isfinite(pair[1]) and pair[1] > 0):
                raise ConfigurationError(f"heads[{key!r}]: a weight of {pair[1]} is not a finite number > 0.")
        if not pairs:
            raise ConfigurationError("heads={}: give at least one loss, by the name or place of its output.")
        self.keys, self.weights = tuple(pairs), tuple(float(weight) for _, weight in pairs.values())
        self.targets = {key: (targets or {}).get(key, key) for key in pairs}
        if not set(targets or {}) <= set(pairs):
            raise ConfigurationError(f"targets={targets}: name targets for the heads {list(pairs)} alone.")
        self.losses = nn.ModuleList([loss for loss, _ in pairs.values()])

    @property
    def heads(self) -> list[tuple[Any, Loss, float]]:
        """(key, loss, weight) of each head."""
        return list(zip(self.keys, self.losses, self.weights, strict=True))  # type: ignore[arg-type]

    def per_example(self, outputs: Any, targets: Any) -> Tensor:
        values = [loss.per_example(outputs[key], targets[key]) * weight for key, loss, weight in self.heads]
        return torch.stack(values).sum(0)

    def logit_gradient(self, shape: Any) -> Norms:
        parts = [loss.gradient_norms(self._at(shape, key, "outputs")) * weight for key, loss, weight in self.heads]
        return Norms.concatenate(parts, joint(shape))

    def head_gradients(self, gradients: Structure) -> Structure:
        def scaled(key: Any, loss: Loss, weight: float) -> Structure:
            own = bounded(mapped(lambda g: g / weight, gradients[key]), loss)
            return mapped(lambda g: g * weight, own)

        return {key: scaled(key, loss, weight) for key, loss, weight in self.heads}

    def classes(self, outputs: Any) -> int | None:
        return None

    def measures(self, outputs: Any, targets: Any) -> dict[str, Tensor]:
        each = {key: loss.measures(outputs[key], targets[key]) for key, loss, _ in self.heads}
        return {f"{key}.{name}": values for key, found in each.items() for name, values in found.items()}

    def sample_targets(self, outputs: Any) -> Any:
        return {key: loss.sample_targets(outputs[key]) for key, loss, _ in self.heads}

    def select(self, outputs: Any) -> Structure:
        return {key: loss.select(self._at(outputs, key, "outputs")) for key, loss, _ in self.heads}

    def select_targets(self, targets: Any) -> Structure:
        named = ((key, self._at(targets, self.targets[key], "targets"), loss) for key, loss, _ in self.heads)
        return {key: loss.select_targets(held) for key, held, loss in named}

    def check(self, outputs: Any, targets: Any) -> None:
        for key, loss, _ in self.heads:
            try:
                loss.check(self._at(outputs, key, "outputs"), self._at(targets, key, "targets"))
            except ConfigurationError as wrong:
                raise ConfigurationError(f"head {key!r}: {wrong}") from None

    def _at(self, values: Any, key: Any, what: str) -> Any:
        """The value of one head."""
        try:
            if isinstance(values, Tensor) or is_shape(values):
                raise TypeError
            return values[key]
        except (KeyError, IndexError, TypeError):
            held = sorted(map(repr, values)) if isinstance(values, Mapping) else type(values).__name__
            raise ConfigurationError(
                f"{what} hold no {key!r}, which a head reads: they are {held}. Give a dict or a tuple with an entry "
                "for each head, or name the heads as they are."
            ) from None
