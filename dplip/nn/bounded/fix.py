"""What a model must give up to be private, mended in place where that needs no more than a decision."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from dplip.errors import ConfigurationError
from dplip.nn.frozen import Frozen

KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
GROUPS = 32


def fix(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """Replace what mixes examples or keeps statistics of batches, in place, and say what was changed.

    ``BatchNorm`` of any kind becomes ``GroupNorm`` with the same scale and shift (the same parameters, so an optimizer
    keeps them); ``InstanceNorm`` keeps no running statistics; activations and dropout are not in place. Layers that are
    frozen and in evaluation mode, whose statistics are constants, stay.

    Args:
        model: any module. What its code does by functions (``F.batch_norm``, ``x += y``) is not seen here.

    Returns:
        The model (another module only if it was a ``BatchNorm`` itself), and a sentence for each change, such as
        ``"layer1.0.bn1: BatchNorm2d(64) -> GroupNorm(32, 64)"``.

    Raises:
        ConfigurationError: a layer needs more than that; nothing has been changed.
    """
    found = list(_layers(model))
    for path, layer in found:
        problem = _problem(layer)
        if problem is not None:
            raise ConfigurationError(f"{path or 'the model'}: {type(layer).__name__} {problem}")
    changes: list[str] = []
    new: dict[nn.Module, nn.Module] = {}
    for path, layer in found:
        where = path or "the model"
        if type(layer) in KINDS and not _constant(layer):
            new[layer] = _grouped(layer)
            changes.append(f"{where}: {type(layer).__name__}({layer.num_features}) -> {_short(new[layer])}")
        elif isinstance(layer, _InstanceNorm) and layer.track_running_stats and not _constant(layer):
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
            changes.append(f"{where}: {type(layer).__name__} keeps no running statistics")
        elif getattr(layer, "inplace", None) is True:
            layer.inplace = False  # type: ignore[assignment]
            changes.append(f"{where}: {type(layer).__name__}(inplace=True) -> inplace=False")
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in new:
                parent._modules[name] = new[child]
    return new.get(model, model), changes


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules with their paths, once each, but for what runs frozen."""
    frozen = {inner for module in model.modules() if isinstance(module, Frozen) for inner in module.modules()}
    return ((path, layer) for path, layer in model.named_modules() if layer not in frozen)


def _constant(layer: nn.Module) -> bool:
    """Whether a layer's statistics stay as they are."""
    return not layer.training and not any(p.requires_grad for p in layer.parameters())


def _problem(layer: nn.Module) -> str | None:
    """Why a layer cannot be mended, and what to do instead."""
    if isinstance(layer, LazyModuleMixin) and layer.has_uninitialized_params():
        return "has no weights yet. Run the model once, on a public batch."
    if _constant(layer):
        return None
    if is_parametrized(layer):
        return (
            "computes its weight from another one (a parametrization), so no layer bounds the gradient. Remove it with "
            "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight'), or use dplip.constrain."
        )
    hooks = {type(hook).__name__ for hook in layer._forward_pre_hooks.values()}
    if hooks & {"SpectralNorm", "WeightNorm"}:
        return (
            "computes its weight from another one (a hook), so no layer bounds the gradient. Remove it with "
            "torch.nn.utils.remove_spectral_norm or remove_weight_norm, or use dplip.constrain."
        )
    if isinstance(layer, _BatchNorm) and type(layer) not in KINDS:
        return (
            "is a BatchNorm that does more, and mixes examples. Build the model with another norm_layer, such as "
            "lambda channels: torch.nn.GroupNorm(min(32, channels), channels)."
        )
    return None


def _grouped(layer: Any) -> nn.GroupNorm:
    """A GroupNorm with the scale and shift of a BatchNorm."""
    new = nn.GroupNorm(_groups(layer), layer.num_features, layer.eps, affine=False)
    new.affine, new.weight, new.bias = layer.affine, layer.weight, layer.bias
    return new.train(layer.training)


def _groups(layer: Any) -> int:
    """At most 32, of two channels or more: of one entry each, a group's value would be lost."""
    channels: int = layer.num_features
    groups = math.gcd(GROUPS, channels)
    if isinstance(layer, nn.BatchNorm1d):
        return 1  # its input may have no positions, over which a group could be normalised
    return max(1, channels // 2) if groups == channels else groups


def _short(layer: Any) -> str:
    return f"GroupNorm({layer.num_groups}, {layer.num_channels})"
