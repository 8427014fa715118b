"""The guards of a trace (torch.compile's term): everything that it depends on, as a value to compare."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dplip.runtime.modules import modules_of

ENTRIES = 64
"""The approximate number of entries that are read of each tensor."""

_INTERNAL = set(vars(nn.Module())) - {"training"} | {"_compiled_call_impl"}
_PLAIN: tuple[type, ...] = (bool, int, float, str, type(None))
_VALUES = (*_PLAIN, list, tuple, dict, np.generic)


def guards_of(model: nn.Module) -> tuple[Any, ...]:
    """The modules, their modes and attributes, and the trainable parameters: a trace is valid while they are equal."""
    known: dict[Any, Any] = {}
    return tuple(
        (Same(m), _of_class(type(m), known), _held(m), _attributes(m, known)) for m in modules_of(model).values()
    )


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


def _held(module: nn.Module) -> tuple[Any, ...]:
    """The modules and parameters that a module holds, under their names in it."""
    modules = tuple((name, Same(child)) for name, child in module._modules.items())
    held = module._parameters.items()
    return modules, tuple((name, Same(p), p is not None and p.requires_grad) for name, p in held)


def _attributes(module: nn.Module, known: dict[Any, Any]) -> dict[str, Any]:
    held = vars(module)
    return {name: _constant(held[name], known) for name in held.keys() - _INTERNAL}


def _constant(value: Any, known: dict[Any, Any], depth: int = 3) -> Any:
    """An attribute as a value to compare: plain data by value, other objects by identity.

    ``known`` has what was made of objects, such as settings that many modules share.
    """
    if isinstance(value, _PLAIN):
        return value
    if (id(value), depth) in known:
        return known[id(value), depth]
    if isinstance(value, Tensor):
        return Same.state(value), sample([value])
    if isinstance(value, np.generic):
        return value.tobytes()
    if isinstance(value, np.ndarray):
        return Same(value), value.tobytes()
    if isinstance(value, (list, tuple, set)):
        return tuple(_constant(item, known, depth) for item in value)
    if isinstance(value, dict):
        return tuple((key, _constant(item, known, depth)) for key, item in value.items())
    if depth and hasattr(value, "__dict__") and not _opaque(value):
        held = tuple((key, _constant(item, known, depth - 1)) for key, item in vars(value).items())
        known[id(value), depth] = Same(value), held
        return known[id(value), depth]
    return Same(value)


def _opaque(value: Any) -> bool:
    """Whether an object is callable or belongs to a library, so that it is no plain holder of settings."""
    library = type(value).__module__.partition(".")[0] in ("torch", "numpy", "dplip", "builtins", "functools")
    return library or callable(value)


@functools.cache
def _outside(cls: type) -> tuple[type, ...]:
    """The classes of a module that are neither torch's nor dplip's."""
    return tuple(c for c in cls.__mro__ if c.__module__.partition(".")[0] not in ("torch", "dplip", "builtins"))


def _of_class(cls: Any, known: dict[Any, Any]) -> tuple[Any, ...]:
    """The class, its forward, and its attributes that are plain data."""
    if cls not in known:
        held = ((k, v) for c in _outside(cls) for k, v in vars(c).items() if isinstance(v, _VALUES))
        constants = tuple((k, _constant(v, known, 0)) for k, v in held if not k.startswith("__"))
        known[cls] = Same(cls), Same(cls.forward), constants
    found: tuple[Any, ...] = known[cls]
    return found


@torch.no_grad()
def sample(tensors: list[Tensor]) -> list[str]:
    """The norm of some entries of each tensor, which shows edits through .data or numpy that torch does not count."""
    real = [t.detach() for t in tensors if t.numel() and not t.is_meta and t.layout == torch.strided]
    picked = [t.flatten()[:: 1 + t.numel() // ENTRIES] for t in real if t.is_floating_point() or t.is_complex()]
    return [float(norm).hex() for norm in torch._foreach_norm(picked)] if picked else []
