"""The modules and parameters of a model, in one walk: torch's own generators nest as deep as the model is."""

from __future__ import annotations

from torch import nn


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """What ``model.named_modules()`` gives: each module once, by its first name."""
    found: dict[str, nn.Module] = {}
    _visit("", model, found, set())
    return found


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """What ``model.named_parameters()`` gives: each parameter once, by its first name."""
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for path, module in modules_of(model).items():
        for name, p in module._parameters.items():
            if p is not None and id(p) not in seen:
                seen.add(id(p))
                found[f"{path}.{name}" if path else name] = p
    return found


def _visit(path: str, module: nn.Module, found: dict[str, nn.Module], seen: set[int]) -> None:
    if id(module) in seen:
        return
    seen.add(id(module))
    found[path] = module
    for name, child in module._modules.items():
        if child is not None:
            _visit(f"{path}.{name}" if path else name, child, found, seen)
