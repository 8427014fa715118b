"""The tensors in what a model returns: a tuple, a dictionary, or an object with attributes, such as a dataclass."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in a value."""
    held = vars(value) if _plain(value) else value
    return [leaf for leaf in tree_leaves(held) if isinstance(leaf, Tensor)]


def with_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The value with another tensor in place of each; a plain object is copied."""
    if not _plain(value):
        return tree_map_only(Tensor, function, value)
    copied = copy.copy(value)
    vars(copied).update(tree_map_only(Tensor, function, dict(vars(value))))
    return copied


def _plain(value: Any) -> bool:
    """Whether a value is an object that torch's trees take as a whole."""
    if isinstance(value, (Tensor, type, nn.Module)) or not hasattr(value, "__dict__"):
        return False
    return any(leaf is value for leaf in tree_leaves(value))
