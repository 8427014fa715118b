"""Did it learn? What the noisy gradients of a run tell of each parameter, beside what noise alone would do.

A run whose gradients never reached a layer has the loss curve of its other layers and the epsilon of its plan. What is
public tells the difference. The noisy sum of step t is ``u_t = g_t + s_t n_t`` with a known s_t. If no gradient
arrived, the ``u_t / s_t`` are standard normal given all that came before, even where s_t follows the weights. Then
their sum over T steps is normal of variance T, exactly, and its squared length over T is chi-square with one degree of
freedom for each entry. A gradient that keeps its direction makes it longer; one that draws weights back to where they
were makes it shorter. All of it is post-processing and costs nothing.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TOLD = 3.0
"""How many standard deviations from noise alone a movement is when it can be told from it."""

EDGE = 0.02
"""The share of slack below which all gradients are scaled down; as far below 1, none is."""

NAMED = 8
"""The most parameters that a warning names."""

ENTRIES = 64
"""About so many entries of a parameter are looked at to see whether it moved; noise moves all of them or none."""

_PACKAGE = str(Path(__file__).parents[1])


@dataclass(frozen=True)
class Movement:
    """How a parameter, or a layer, was trained.

    Attributes:
        moved: whether a step of the wrapped optimizer changed its values.
        entries: the number of its values.
        length: the length of its noisy gradients' sum over what it is for noise alone, about 1 if nothing was learned;
            None: no noise was added.
    """

    moved: bool
    entries: int
    length: float | None

    @property
    def deviations(self) -> float | None:
        """How many standard deviations the length is from that of noise alone; None: no noise was added."""
        if self.length is None:
            return None
        spread = 2 / (9 * self.entries)
        return (self.length ** (2 / 3) - (1 - spread)) / math.sqrt(spread)

    @property
    def told_from_noise(self) -> bool:
        return self.deviations is None or abs(self.deviations) >= TOLD


class Learned(Mapping[str, Movement]):
    """Parameter name -> how it moved in the steps so far; ``str`` gives a table.

    Attributes:
        steps: the number of steps that were looked at: all of this optimizer's.
        radii: the present radius of each layer whose radius follows its gradients.
        shares: what the last step's gradients left of these radii (:mod:`dplip.training.radii`): near 1, none came near
            the radius; near 0, all were scaled down to it.

    Guarantee: a function of what the steps released, so it costs no privacy. A layer that no gradient reached is taken
    to have learned with a probability of 0.3%.

    Source: the cube root of a chi-square is nearly normal, Wilson and Hilferty 1931.
    """

    def __init__(
        self,
        movements: Mapping[str, Movement],
        steps: int,
        radii: Mapping[str, float],
        shares: Mapping[str, float],
    ) -> None:
        self._movements, self.steps, self.radii, self.shares = dict(movements), steps, dict(radii), dict(shares)

    def __getitem__(self, name: str) -> Movement:
        return self._movements[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._movements)

    def __len__(self) -> int:
        return len(self._movements)

    @property
    def never_moved(self) -> list[str]:
        """The parameters that no step changed."""
        return [name for name, movement in self.items() if not movement.moved]

    @property
    def layers(self) -> dict[str, Movement]:
        """Layer name -> how its parameters moved together: a bias alone has too few entries to tell much."""
        members: dict[str, list[Movement]] = {}
        for name, movement in self.items():
            members.setdefault(name.rpartition(".")[0] or name, []).append(movement)
        return {layer: _together(movements) for layer, movements in members.items()}

    @property
    def noise_alone(self) -> list[str]:
        """The layers that moved, but as they would have by noise alone."""
        return [layer for layer, movement in self.layers.items() if movement.moved and not movement.told_from_noise]

    def plain(self) -> dict[str, Any]:
        """The entry of a report."""
        found = {name: {**asdict(m), "deviations": m.deviations} for name, m in self.items()}
        return {"steps": self.steps, "parameters": found, "radii": self.radii, "shares": self.shares}

    def warn(self) -> None:
        """Warn, once, of parameters that did not learn, by name."""
        found = []
        if self.never_moved:
            found.append(
                f"{_listed(self.never_moved)} never moved: check the learning rates of the optimizer's groups, and "
                "that no step is below the rounding of the weights"
            )
        if self.noise_alone:
            found.append(
                f"the movement of {_listed(self.noise_alone)} cannot be told from that of noise alone: check that the "
                "loss depends on them; then give smaller radii, larger batches, more steps or a larger epsilon"
            )
        for names, what in (
            (
                [n for n, share in self.shares.items() if share > 1 - EDGE],
                "never reach their radius, which could be smaller",
            ),
            ([n for n, share in self.shares.items() if share < EDGE], "are all scaled down to their radius"),
        ):
            if names:
                found.append(f"at the end the gradients of {_listed(names)} {what}: take more steps, or set the radius")
        if self.steps and found:
            warnings.warn(f"after {self.steps} private steps, {'; and '.join(found)}.", stacklevel=_outside())

    def __str__(self) -> str:
        width = max([len("parameter"), *map(len, self)])
        rows = [f"{'parameter':<{width}}  {'moved':>5}  {'length':>9}  {'deviations':>10}"]
        for name, m in self.items():
            length, deviations = ("-" if v is None else f"{v:.4g}" for v in (m.length, m.deviations))
            rows.append(f"{name:<{width}}  {'yes' if m.moved else 'no':>5}  {length:>9}  {deviations:>10}")
        return "\n".join(rows)


class Learning:
    """Keeps what :class:`Learned` is made of: one sum for each parameter, of its size."""

    def __init__(self) -> None:
        self._steps = 0
        self._sums: dict[str, tuple[Tensor, int]] = {}  # of u_t / s_t, with the number of steps that had noise
        self._moved: dict[str, bool] = {}
        self._before: dict[str, Tensor] = {}

    @torch.no_grad()
    def record(self, parameters: Mapping[str, Tensor], stds: Mapping[str, float]) -> None:
        """Add the noisy gradients in ``.grad``, with the deviations of their noise, before the step that uses them."""
        self._steps += 1
        for name, p in parameters.items():
            total, steps = self._sums.get(name, (None, 0))
            total = torch.zeros_like(p, memory_format=torch.preserve_format) if total is None else total
            if stds[name] > 0 and p.grad is not None:
                total, steps = total.add_(p.grad, alpha=1 / stds[name]), steps + 1
            self._sums[name] = total, steps
            if not self._moved.get(name, False):
                self._before[name] = _some(p).clone()

    @torch.no_grad()
    def compare(self, parameters: Mapping[str, Tensor]) -> None:
        """Note which parameters the wrapped optimizer has changed since :meth:`record`."""
        for name, before in self._before.items():
            self._moved[name] = not torch.equal(before, _some(parameters[name]))
        self._before.clear()

    def learned(self, radii: Mapping[str, float] | None = None, shares: Mapping[str, float] | None = None) -> Learned:
        """What the steps so far tell, beside the radii that they have led to, and what was left of these."""
        found = {n: _movement(self._moved.get(n, False), *kept) for n, kept in self._sums.items()}
        return Learned(found, self._steps, radii or {}, shares or {})


def _movement(moved: bool, total: Tensor, steps: int) -> Movement:
    length = float(torch.linalg.vector_norm(total, dtype=torch.float64))
    return Movement(moved, total.numel(), length / math.sqrt(steps * total.numel()) if steps else None)


def _together(movements: list[Movement]) -> Movement:
    moved, noisy = any(m.moved for m in movements), [(m.entries, m.length) for m in movements if m.length is not None]
    if not noisy:
        return Movement(moved, sum(m.entries for m in movements), None)
    entries = sum(n for n, _ in noisy)
    return Movement(moved, entries, math.sqrt(sum(n * length**2 for n, length in noisy) / entries))


def _some(p: Tensor) -> Tensor:
    return p.detach().flatten()[:: 1 + p.numel() // ENTRIES]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more parameters" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _outside() -> int:
    """The stack level, for a warning of the caller's, of the first frame outside of this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    return level
