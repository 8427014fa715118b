"""The progress bar of a run."""

from __future__ import annotations

from collections.abc import Callable

from tqdm.auto import tqdm


class Progress:
    """A bar over private steps, with the epsilon spent; hidden unless it is to be shown.

    Args:
        steps, done: the number of steps in all, and of those that were taken before.
        shown: whether to show it.
    """

    def __init__(self, steps: int, done: int, shown: bool) -> None:
        self._bar = tqdm(total=steps, initial=done, disable=not shown, unit="step")
        self._shown, self._steps = shown, steps

    def step(self, epsilon: Callable[[], float], private_loss: float | None) -> None:
        """Count a step; every tenth shows the epsilon, and a loss on private data if one is given."""
        self._bar.update()
        if self._shown and (self._bar.n % 10 == 0 or self._bar.n == self._steps):
            values = {"epsilon": f"{epsilon():.3f}"}
            if private_loss is not None:
                values["PRIVATE loss (leaks)"] = f"{private_loss:.4f}"
            self._bar.set_postfix(values, refresh=False)

    def close(self) -> None:
        self._bar.close()
