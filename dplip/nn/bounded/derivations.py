"""What is computed of bounded parameters alone, before they meet an example: parts of them, and functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from dplip.nn.bounded.parameter import derived, handles, made_of, own
from dplip.nn.bounded.unwritten import Unwritten
from dplip.separation import current


def named(names: str) -> list[Any]:
    """The functions of torch, of tensors and of torch.nn.functional that have these names."""
    return list(_named(names))


def _named(names: str) -> Iterator[Any]:
    for name in names.split():
        for place in (torch, Tensor, F):
            if callable(getattr(place, name, None)):
                yield getattr(place, name)


PARTS = named(
    "view reshape transpose t permute unsqueeze squeeze flatten unflatten select narrow chunk split tensor_split "
    "unbind movedim moveaxis swapaxes swapdims view_as reshape_as"
)
SAME = named("clone contiguous to type float double half bfloat16 type_as")
ALONE = named(
    "add sub mul div true_divide neg exp log sqrt rsqrt square pow abs sigmoid tanh relu gelu silu softplus softmax "
    "log_softmax normalize interpolate pad sum mean cat stack flip roll index_select repeat tile expand expand_as "
    "broadcast_to clamp reciprocal norm outer mv dot vdot tril triu diag amax amin var std matrix_exp __add__ __radd__ "
    "__sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __neg__ __pow__"
)
OF_MATRICES = [
    torch.linalg.vector_norm, torch.linalg.matrix_norm, torch.linalg.norm, torch.norm_except_dim, torch.linalg.solve,
]  # fmt: skip


def constants(args: Any, kwargs: Any) -> bool:
    """Whether all arguments that are not parameters of ours are constants."""
    watch = current()
    others = [a for a in tree_flatten((args, kwargs))[0] if isinstance(a, Tensor) and not own(a)]
    return not any(a.requires_grad or (watch is not None and watch.rows(a) is not None) for a in others)


@handles(*PARTS, Tensor.T.__get__, Tensor.mT.__get__, Tensor.mH.__get__)  # type: ignore[attr-defined]
def part(function: Any, args: Any, kwargs: Any) -> Any:
    """A selection of entries, each once."""
    value = args[0]
    if not own(value):
        return NotImplemented
    parameters, how, radius = made_of(value)
    if how is not None or value.dtype != parameters[0].dtype:
        return alone(function, args, kwargs)
    return _each(function(*args, **kwargs), lambda t, _: derived(t, (), None, radius))


def basic(index: Any) -> bool:
    """Whether an index takes no entry twice: numbers, slices, None and Ellipsis."""
    indices = index if isinstance(index, tuple) else (index,)
    return all(i is None or i is Ellipsis or type(i) in (int, slice) for i in indices)


@handles(*SAME)
def same(function: Any, args: Any, kwargs: Any) -> Any:
    """The same numbers, perhaps of another type, in which they are used: their gradient is summed in their own type."""
    value, result = args[0], function(*args, **kwargs)
    if result is value or not own(value) or result.device != value.device or not result.is_floating_point():
        return result
    return derived(result, *made_of(value), getattr(value, "ids", None), getattr(value, "padding", None))


@handles(*ALONE, *OF_MATRICES)
def alone(function: Any, args: Any, kwargs: Any) -> Any:
    """A function of parameters and constants; its gradient for each example is computed from the parameters anew."""
    if not constants(args, kwargs):
        return NotImplemented
    leaves, tree = tree_flatten((args, kwargs))
    found = [i for i, leaf in enumerate(leaves) if own(leaf)]
    made = [made_of(leaves[i]) for i in found]
    parameters = tuple(dict.fromkeys(p for ps, _, _ in made for p in ps))  # one that is there twice has one gradient
    places = {id(p): i for i, p in enumerate(parameters)}
    taken = [[places[id(p)] for p in ps] for ps, _, _ in made]
    if len({(p.dtype, p.device) for p in parameters}) != 1:
        return NotImplemented
    result = function(*args, **kwargs)
    leaves = [leaf.detach() if isinstance(leaf, Tensor) and not own(leaf) else leaf for leaf in leaves]
    then = Unwritten(leaf for leaf in leaves if isinstance(leaf, Tensor) and not own(leaf))

    def again(at: int | None, *given: Tensor) -> Tensor:
        then.require()
        filled = list(leaves)
        for i, (_, how, _), chosen in zip(found, made, taken, strict=True):
            mine = [given[k] for k in chosen]
            filled[i] = mine[0] if how is None else how(*mine)
        new_args, new_kwargs = tree_unflatten(filled, tree)
        value: Any = function(*new_args, **new_kwargs)
        return value if at is None else value[at]

    radius = max((r for _, _, r in made), key=float)
    return _each(result, lambda t, at: derived(t, parameters, lambda *given: again(at, *given), radius))


def _each(result: Any, make: Any) -> Any:
    """A tensor, or each of several, remembering how it was made."""
    if isinstance(result, Tensor):
        return make(result, None)
    return type(result)(make(t, i) for i, t in enumerate(result)) if type(result) in (tuple, list) else result


@handles(F.dropout)
def dropout(function: Any, args: Any, kwargs: Any) -> Any:
    """A product with a mask that does not depend on examples."""

    def bounded(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        if not own(input) or inplace:
            return NotImplemented
        with torch.no_grad():
            mask = F.dropout(torch.ones_like(input), p, training)
        return alone(torch.mul, (input, mask), {})

    return bounded(*args, **kwargs)


@handles(torch._weight_norm)
def weight_norm(function: Any, args: Any, kwargs: Any) -> Any:
    """``g v / |v|``, of weight normalisation, by operators that can be computed for several cotangents at once."""

    def normed(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
        return v * (g / torch.norm_except_dim(v, 2, dim))

    return alone(normed, args, kwargs)
