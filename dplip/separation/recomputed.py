"""Activation checkpointing: what runs again in the backward pass is told what it was told the first time.

Layers ask the watch of a forward pass where the examples are, and no watch sees the second run. So what they are told
inside a checkpoint is kept with it, in the order of the questions, and told again; other questions are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor
from torch._C._autograd import _top_saved_tensors_default_hooks

from dplip.errors import MixedExamplesError
from dplip.separation.place import frames
from dplip.separation.rows import Rows
from dplip.separation.watch import active

TORCH = "torch.utils.checkpoint"


class Knowledge(Protocol):
    """What a layer may ask of the pass that it runs in: see :class:`dplip.separation.watch.Watch`."""

    examples: int

    def rows(self, t: Tensor) -> Rows | None: ...

    def equal(self, t: Tensor, axis: int) -> bool: ...

    def own(self, t: Tensor) -> None: ...


def current() -> Knowledge | None:
    """What is known of the pass of this thread, from its watch or from the run that is repeated; None: nothing."""
    found: Knowledge | None = active()
    hooks = _top_saved_tensors_default_hooks(True)
    if hooks is None:  # no checkpoint is near
        return found
    around = []
    for frame in frames():
        if frame.f_globals.get("__name__") == TORCH:
            held = frame.f_locals
            if "gen" in held:  # the first run
                around.append(held["gen"].gi_frame.f_locals["new_frame"])
            elif "gid" in held:
                kept = _Kept.of(held["frame"])
                found = None if kept is None else kept.again(held["gid"])
                break
    if found is not None and not all(str(hook.__module__).startswith("torch.") for hook in hooks):
        raise MixedExamplesError(
            "torch.autograd.graph.saved_tensors_hooks: code outside of torch may hand the backward pass other numbers "
            "than were saved. Leave the hooks out, or use torch.autograd.graph.save_on_cpu."
        )
    if found is not None and not around and hooks[0].__module__ == TORCH and found is active():
        raise MixedExamplesError(
            "activation checkpointing: it was begun in a way that is not known, and layers that run again would not be "
            "told where the examples are. Call torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
        )
    return found if found is None or not around else _Told(found, around)


class _Kept:
    """What the code in a checkpoint has been told.

    Args:
        examples: the number of examples.
    """

    def __init__(self, examples: int) -> None:
        self.examples = examples
        self.answers: list[tuple[Any, Any]] = []  # with their questions
        self._runs: dict[Any, _Again] = {}

    @staticmethod
    def of(checkpoint: Any) -> _Kept | None:
        found: _Kept | None = vars(checkpoint).get("dplip_kept")
        return found

    def again(self, run: Any) -> _Again:
        """The same answers, for a run of the backward pass."""
        return self._runs.setdefault(run, _Again(self.examples, iter(self.answers)))


class _Told:
    """Answers, which the checkpoints around the code keep."""

    def __init__(self, source: Knowledge, around: list[Any]) -> None:
        self.examples, self._source = source.examples, source
        self._kept = [vars(checkpoint).setdefault("dplip_kept", _Kept(self.examples)) for checkpoint in around]

    def rows(self, t: Tensor) -> Rows | None:
        return self._keep(("rows", t.shape), self._source.rows(t))

    def equal(self, t: Tensor, axis: int) -> bool:
        return bool(self._keep(("equal", t.shape, axis), self._source.equal(t, axis)))

    def own(self, t: Tensor) -> None:
        self._source.own(t)

    def _keep(self, question: Any, answer: Any) -> Any:
        for kept in self._kept:
            kept.answers.append((question, answer))
        return answer


class _Again:
    """Answers that were given before."""

    def __init__(self, examples: int, answers: Iterator[tuple[Any, Any]]) -> None:
        self.examples, self._answers = examples, answers

    def rows(self, t: Tensor) -> Rows | None:
        found: Rows | None = self._next(("rows", t.shape))
        return found

    def equal(self, t: Tensor, axis: int) -> bool:
        return bool(self._next(("equal", t.shape, axis)))

    def own(self, t: Tensor) -> None:
        pass

    def _next(self, question: Any) -> Any:
        before, answer = next(self._answers, (None, None))
        if before != question:
            raise MixedExamplesError(
                f"activation checkpointing: code that ran again in the backward pass came to a value of shape "
                f"{tuple(question[1])}, where it had {'none' if before is None else tuple(before[1])} in the forward "
                "pass. Let it do the same twice (no counters, no random numbers of Python), or leave checkpointing out."
            )
        return answer
