"""The guards of a trace (torch.compile's term): everything that it depends on, as a value to compare."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ENTRIES = 64
"""The approximate number of entries that are read of each tensor."""

_INTERNAL = set(vars(nn.Module())) - {"training"} | {"_compiled_call_impl"}
_PLAIN: tuple[type, ...] = (bool, int, float, str, type(None))


def guards_of(model: nn.Module) -> tuple[Any, ...]:
    """The modules, their modes and attributes, and the trainable parameters: a trace is valid while they are equal."""
    modules = tuple(
        (name, Same(m), Same(type(m)), Same(type(m).forward), _class_constants(type(m)), _attributes(m))
        for name, m in model.named_modules(remove_duplicate=False)
    )
    parameters = model.named_parameters(remove_duplicate=False)
    return modules, tuple((name, Same(p), p.requires_grad) for name, p in parameters)


def has_foreign_code(model: nn.Module) -> bool:
    """Whether some module's class is neither torch's nor dplip's: its code may read more than its attributes."""
    return any(not c.__module__.startswith(("torch.nn.", "dplip.")) for c in {type(m) for m in model.modules()})


class Same:
    """An object compared by identity, kept alive so that the identity stays unique, with a version number."""

    def __init__(self, thing: Any, version: int = 0) -> None:
        self.thing, self.version = thing, version

    @classmethod
    def state(cls, tensor: Tensor) -> Same:
        """A tensor compared by identity and by torch's version counter."""
        return cls(tensor, 0 if tensor.is_inference() else tensor._version)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.thing is other.thing and self.version == other.version


def _attributes(module: nn.Module) -> tuple[Any, ...]:
    return tuple((k, _constant(v)) for k, v in vars(module).items() if k not in _INTERNAL)


def _constant(value: Any, depth: int = 3) -> Any:
    """An attribute as a value to compare: plain data by value, other objects by identity."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor):
        return Same.state(value), sample([value])
    if isinstance(value, np.generic):
        return value.tobytes()
    if isinstance(value, np.ndarray):
        return Same(value), value.tobytes()
    if isinstance(value, (list, tuple, set)):
        return tuple(_constant(item, depth) for item in value)
    if isinstance(value, dict):
        return tuple((key, _constant(item, depth)) for key, item in value.items())
    if depth and hasattr(value, "__dict__") and not _opaque(value):
        return Same(value), tuple((key, _constant(item, depth - 1)) for key, item in vars(value).items())
    return Same(value)


def _opaque(value: Any) -> bool:
    """Whether an object is callable or belongs to a library, so that it is no plain holder of settings."""
    library = type(value).__module__.partition(".")[0] in ("torch", "numpy", "dplip", "builtins", "functools")
    return library or callable(value)


@functools.cache
def _outside(cls: type) -> tuple[type, ...]:
    """The classes of a module that are neither torch's nor dplip's."""
    return tuple(c for c in cls.__mro__ if c.__module__.partition(".")[0] not in ("torch", "dplip", "builtins"))


def _class_constants(cls: type) -> tuple[Any, ...]:
    """The class attributes that are plain data."""
    held = ((k, v) for c in _outside(cls) for k, v in vars(c).items() if not k.startswith("__"))
    return tuple((k, _constant(v, 0)) for k, v in held if isinstance(v, (*_PLAIN, list, tuple, dict, np.generic)))


@torch.no_grad()
def sample(tensors: list[Tensor]) -> list[str]:
    """The norm of some entries of each tensor, which shows edits through .data or numpy that torch does not count."""
    real = [t.detach() for t in tensors if t.numel() and not t.is_meta and t.layout == torch.strided]
    picked = [t.flatten()[:: 1 + t.numel() // ENTRIES] for t in real if t.is_floating_point() or t.is_complex()]
    return [float(norm).hex() for norm in torch._foreach_norm(picked)] if picked else []
