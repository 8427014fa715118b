"""The arguments of a model, as those of one example: nested tensors without the batch axis, and constants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from dplip.errors import ConfigurationError

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""The positional and the keyword arguments of one call."""


class Example:
    """What a model is called with: every tensor holds an example a row, and all else is the same at every call.

    Args:
        args, kwargs: the arguments for one example, with its tensors as they are without the batch axis; nested tuples,
            lists and dictionaries may hold them.

    Raises:
        ConfigurationError: there is no tensor among them.
    """

    def __init__(self, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> None:
        self._leaves, self._tree = tree_flatten((tuple(args), dict(kwargs or {})))
        self._typed = True  # else floating-point numbers are of the type of the model's weights
        if not any(isinstance(leaf, Tensor) for leaf in self._leaves):
            raise ConfigurationError(
                f"example={args or kwargs!r}: no tensor of one example is among the model's inputs. Give tensors, or "
                "numpy arrays in a data set whose collate function makes tensors of them."
            )

    @classmethod
    def of_shape(cls, shape: tuple[int, ...]) -> Example:
        """A single tensor of this shape, in the type of the model's weights."""
        found = cls((torch.zeros((shape,) if isinstance(shape, int) else tuple(shape)),))
        found._typed = False
        return found

    @classmethod
    def of(cls, example: Any) -> Example:
        """A tensor, a tuple of the positional arguments, a dictionary of the keyword arguments, or an Example."""
        if isinstance(example, Example):
            return example
        if isinstance(example, Mapping):
            return cls((), example)
        return cls(tuple(example) if isinstance(example, tuple | list) else (example,))

    @classmethod
    def of_batch(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Example:
        """That of a call with a batch, whose first example is taken."""
        leaves, tree = tree_flatten((tuple(args), dict(kwargs)))
        firsts = [leaf[0] if isinstance(leaf, Tensor) and leaf.ndim else leaf for leaf in leaves]
        args, kwargs = tree_unflatten(firsts, tree)
        return cls(args, kwargs)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of the input, if it is a single tensor of floating-point numbers."""
        first = self._leaves[0]
        single = len(self._leaves) == 1 and isinstance(first, Tensor) and self._call([first])[0] == (first,)
        return tuple(first.shape) if single and first.is_floating_point() else None

    def single_shape(self) -> tuple[int, ...]:
        """:attr:`shape`; raises where there is none."""
        if self.shape is None:
            raise ConfigurationError(
                f"input_shape: the model takes {self!r}, which has no single shape. Give one tensor of floating-point "
                "numbers, or leave out what needs a shape (precompute, certificates)."
            )
        return self.shape

    def batch(self, count: int, like: Tensor) -> Call:
        """A call with random public examples, the same at each time: normal numbers; integers in another order.

        Args:
            count: the number of examples.
            like: a weight of the model, of whose device, and among floating-point numbers type, the examples are.
        """
        generator = torch.Generator().manual_seed(count)

        def rows(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            if leaf.is_floating_point():
                drawn = torch.randn((count, *leaf.shape), generator=generator)
                return drawn.to(like.device, leaf.dtype if self._typed else like.dtype)
            entries = leaf.detach().cpu().flatten()
            shuffled = [entries[torch.randperm(len(entries), generator=generator)] for _ in range(count)]
            return torch.stack(shuffled).reshape(count, *leaf.shape).to(like.device)

        return self._call([rows(leaf) for leaf in self._leaves])

    def tensors(self, call: Call) -> list[Tensor]:
        """The tensors of a call."""
        return [leaf for leaf in tree_flatten(call)[0] if isinstance(leaf, Tensor)]

    def with_tensors(self, tensors: list[Tensor]) -> Call:
        """A call with these tensors."""
        rest = iter(tensors)
        return self._call([next(rest) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves])

    def problem(self, call: Call) -> str | None:
        """Why a call is not one with a batch of such examples, as a sentence; None: it is."""
        leaves, tree = tree_flatten(call)
        if tree != self._tree:
            return (
                f"the model was called with arguments {_names(call)}, and is made private for calls with "
                f"{_names(self._call(self._leaves))}. Call it in the same way at each step."
            )
        counts = {len(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim}
        for own, leaf in zip(self._leaves, leaves, strict=True):
            if isinstance(own, Tensor) != isinstance(leaf, Tensor) or (not isinstance(own, Tensor) and own != leaf):
                return (
                    f"an argument of the model is {_shown(leaf)}, and was {_shown(own)} when it was made private. What "
                    "is the same for all examples must not change; it can be an attribute or a buffer of the model."
                )
            if isinstance(own, Tensor) and not self._alike(own, leaf):
                return (
                    f"the model was given examples of {_shown(leaf[0] if leaf.ndim else leaf)}, but was made private "
                    f"for {_shown(own)}. Bring examples to one shape and type; sequences of several lengths by padding "
                    "to one public length (dplip.data.Padding), since the longest of a batch depends on its other "
                    "examples."
                )
        tensors = [id(leaf) for leaf in leaves if isinstance(leaf, Tensor)]
        if len(set(tensors)) != len(tensors):
            return "one tensor is given as two arguments of the model, which are told apart. Give a copy: x.clone()."
        if len(counts) != 1:
            return f"the model's arguments hold {sorted(counts)} rows. Give each one row for each example."
        return None

    def __repr__(self) -> str:
        return f"Example({_names(self._call(self._leaves))})"

    def _alike(self, own: Tensor, rows: Tensor) -> bool:
        """Whether the rows are examples of one's own shape and type."""
        typed = self._typed or not (own.is_floating_point() and rows.is_floating_point())
        return rows.ndim > 0 and rows.shape[1:] == own.shape and (own.dtype == rows.dtype or not typed)

    def _call(self, leaves: list[Any]) -> Call:
        args, kwargs = tree_unflatten(leaves, self._tree)
        return args, kwargs


def _shown(value: Any) -> str:
    return f"shape {tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else repr(value)


def _names(call: Call) -> str:
    args, kwargs = call
    return ", ".join([*(_shown(a) for a in args), *(f"{k}: {_shown(v)}" for k, v in kwargs.items())])
