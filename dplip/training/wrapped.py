"""Checks of the wrapped optimizer: nothing but the noisy gradient may move the weights."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim import optimizer as hooked_by_all

from dplip.errors import ConfigurationError
from dplip.propagation.checks import PublicHook
from dplip.propagation.guards import Same
from dplip.training import adam
from dplip.training.adam import CorrectedAdam
from dplip.training.batches import Batches

_OWN: set[type] = {c for c in vars(torch.optim).values() if isinstance(c, type) and issubclass(c, Optimizer)} - {
    Optimizer
}
_OWN |= {CorrectedAdam}
_LIBRARY = Path(torch.__file__).parent
_DECORATORS = (str(_LIBRARY / "optim"), str(_LIBRARY / "utils" / "_contextlib.py"), adam.__file__)
_UNFIT = {
    torch.optim.LBFGS: "LBFGS evaluates the loss several times a step, and a private step has one gradient",
    torch.optim.SparseAdam: "SparseAdam takes sparse gradients alone, and noise is dense",
}
_TABLES = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


class OnlyPrivately(PublicHook):
    """A hook that refuses steps of the wrapped optimizer outside a private step."""

    def __init__(self, private: Any) -> None:
        self._private = weakref.ref(private)
        self.open = False

    def __call__(self, *_: Any) -> None:
        if not self.open and self._private() is not None:
            raise ConfigurationError(
                "optimizer.step(): this optimizer is wrapped by a private one, and its own step adds no noise. Call "
                "step() of the optimizer that make_private() or DPLipOptimizer() returned (trainer.optimizer of a "
                "trainer)."
            )

    def put(self, optimizer: Optimizer) -> None:
        """Watch an optimizer, in place of an earlier hook of this class."""
        table: Any = getattr(optimizer, _TABLES[0], {})
        for key in [key for key, hook in table.items() if isinstance(hook, OnlyPrivately)]:
            del table[key]
        if not isinstance(getattr(optimizer, _TABLES[0], None), dict):
            return  # no torch optimizer underneath: the user trusts it explicitly
        optimizer.register_step_pre_hook(self)


class Group(dict[str, Any]):
    """A parameter group that refuses to be set while a part of a batch is in the gradients."""

    incomplete: Callable[[], bool]

    def __setitem__(self, name: str, value: Any) -> None:
        incomplete = getattr(self, "incomplete", None)
        if incomplete is not None and incomplete():
            raise ConfigurationError(
                f"param_groups: {name!r} is set while only a part of a batch was handed out, so its value would depend "
                "on the number of parts, which is private. Step the scheduler after a step of the whole batch: if "
                "loader.complete."
            )
        super().__setitem__(name, value)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return dict, (dict(self),)


def check_wrapped(optimizer: Any, trusted: bool) -> None:
    """Refuse an optimizer whose step is not torch's own function of ``.grad``.

    Raises:
        ConfigurationError: a method of the step is not torch.optim's own, or a hook runs around it.
    """
    if not isinstance(optimizer, Optimizer):
        raise ConfigurationError(
            f"optimizer={optimizer!r}: give a torch optimizer over the model's parameters, such as "
            "torch.optim.SGD(model.parameters(), lr=0.1)."
        )
    if type(optimizer) in _UNFIT:
        raise ConfigurationError(f"optimizer: {_UNFIT[type(optimizer)]}. Use SGD or Adam.")
    if trusted:
        return
    changed = _not_torchs(optimizer)
    if changed:
        raise ConfigurationError(
            f"optimizer={type(optimizer).__name__}: its {changed} is not torch's own, so it may keep gradients of its "
            "own and move the weights without the noise. Give an optimizer of torch.optim; if you have read the code "
            "and know that it moves weights by what it finds in .grad at step() alone, in one process, say "
            "trust_optimizer=True."
        )
    hooks: list[Any] = [hook for table in _TABLES for hook in getattr(optimizer, table).values()]
    hooks += [*hooked_by_all._global_optimizer_pre_hooks.values(), *hooked_by_all._global_optimizer_post_hooks.values()]
    foreign = [hook for hook in hooks if not isinstance(hook, PublicHook)]
    if foreign:
        raise ConfigurationError(
            f"optimizer: {len(foreign)} hooks run around the step of the wrapped optimizer, and may put back gradients "
            "without noise, or mix those of several processes. Remove them; a hook on the private optimizer (its "
            "register_step_post_hook) runs around the whole private step."
        )


def check_groups(optimizer: Optimizer, model: nn.Module) -> None:
    """Refuse groups that lack a trainable parameter, train a foreign one, or hold an invalid learning rate."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    held = {id(p) for p in parameters}
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigurationError("model: no parameter of it is trainable, so there is nothing to train. Thaw some.")
    missing = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held]
    if missing:
        raise ConfigurationError(
            f"optimizer: it lacks the trainable parameter {missing[0]!r}. Build it over model.parameters(), or freeze "
            "that parameter with requires_grad_(False)."
        )
    for group in optimizer.param_groups:
        rate = group.get("lr", 0.0)
        single = rate.numel() == 1 if isinstance(rate, Tensor) else isinstance(rate, int | float)
        if not (single and 0 <= float(rate) < math.inf):
            raise ConfigurationError(f"lr={rate}: a learning rate is a finite number >= 0. Set it so.")
    own = {id(p) for p in model.parameters()}
    # An optimizer leaves a parameter without a gradient alone, such as one of a frozen front end.
    foreign = {id(p) for p in parameters if p.requires_grad or p.grad is not None} - own
    if foreign:
        raise ConfigurationError(
            f"optimizer: it holds {len(foreign)} parameters that are not the model's, which would be trained "
            "without noise. Build it over model.parameters()."
        )


def keep_gradients_of(parameters: list[nn.Parameter], optimizer: Optimizer) -> None:
    """Drop the gradients of the optimizer's other parameters, which got no noise."""
    noisy = {id(p) for p in parameters}
    for group in optimizer.param_groups:
        for p in group["params"]:
            if id(p) not in noisy:
                p.grad = None


class Steady:
    """Keeps the settings of a step as they are while only a part of its batch was handed out.

    Args:
        optimizer, model: the wrapped optimizer and the model, with its radii.
        batches: says which batch it is, and whether it is complete.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module, batches: Batches) -> None:
        self._optimizer, self._model, self._batches = optimizer, model, batches
        self._settings: list[dict[str, Any]] | None = None  # when the present batch began
        self._number: int | None = None  # of that batch
        self.watch()

    def watch(self) -> None:
        """Make every parameter group refuse changes while a batch is incomplete."""
        for index, group in enumerate(self._optimizer.param_groups):
            if not isinstance(group, Group):
                self._optimizer.param_groups[index] = group = Group(group)
            group.incomplete = self._incomplete

    def require(self) -> None:
        """Refuse parts of one batch that are trained with different settings: the number of parts is private."""
        self.watch()
        held = [vars(one) for one in (*self._model.modules(), *self._model.parameters())]
        present = [*_settings(self._optimizer), {"radii": [one["radius"] for one in held if "radius" in one]}]
        if self._incomplete() and not _same_settings(self._settings or [], present):
            raise ConfigurationError(
                "step(): a learning rate, a radius, or another setting, has changed between the parts of one "
                "batch, so it would depend on their number, which is private. Change it after the whole batch's step: "
                "if loader.complete."
            )
        if not self._batches.complete:
            self._settings, self._number = present, self._batches.number
        elif not self._incomplete():
            self._settings = None  # those of a batch that was abandoned

    def require_none(self) -> None:
        """Refuse to load a state while a batch is incomplete."""
        if self._settings is not None:
            raise ConfigurationError("load_state_dict(): only a part of a batch was handed out. Finish its step first.")

    def release(self) -> None:
        """Let settings change: the batch's step is taken."""
        self._settings = None

    def _incomplete(self) -> bool:
        return self._settings is not None and self._number == self._batches.number


def _settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The groups' settings, and the optimizer's state of each parameter, as values."""
    groups = [
        {k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in group.items() if k != "params"}
        for group in optimizer.param_groups
    ]
    kept = {
        f"{k} of {id(p)}": Same.state(v) if isinstance(v, Tensor) else v
        for p, state in optimizer.state.items()
        for k, v in state.items()
    }
    return [*groups, kept]


def _same_settings(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(bool(a[k] == b[k]) for k in a) for a, b in zip(one, other, strict=True)
    )


def _not_torchs(optimizer: Optimizer) -> str:
    """The name of a method of the step that is not torch.optim's own; empty: there is none."""
    base = next((c for c in type(optimizer).__mro__ if c in _OWN), None)
    if base is None:
        return "step()"
    above = type(optimizer).__mro__[: type(optimizer).__mro__.index(base)]
    for name in [n for c in above for n in vars(c)] + list(vars(optimizer)):
        if not name.startswith("__") and name != "step" and callable(getattr(base, name, None)):
            return f"{name}()"
    return "" if _is_torchs(vars(optimizer).get("step", type(optimizer).step), base) else "step()"


def _is_torchs(step: Any, base: type) -> bool:
    """Whether a step is torch.optim's own function, wrapped by torch alone (profiling, schedulers)."""
    code = None
    while step is not None:
        code = getattr(step, "__code__", None)
        if code is None or not code.co_filename.startswith(_DECORATORS):
            return False
        step = getattr(step, "__wrapped__", None)
    return code is not None and code.co_name == "step"
