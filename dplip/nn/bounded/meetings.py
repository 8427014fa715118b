"""Where bounded parameters meet values of examples: an enforcing node takes the place of the plain use."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from dplip.nn.bounded.derivations import ALONE, alone, named, part
from dplip.nn.bounded.embedding import lookup
from dplip.nn.bounded.linear import LinearGradients
from dplip.nn.bounded.parameter import handles, made_of, own
from dplip.nn.bounded.use import Place, copies_of, place, spread
from dplip.nn.bounded.weights import Affine, Convolved, WeightGradients
from dplip.separation import Rows, current, examples_first

IN_PLACE = named("add_ sub_ mul_ div_ __iadd__ __isub__ __imul__ __itruediv__")
ELEMENTWISE = named(
    "add sub mul div true_divide pow maximum minimum where lerp addcmul addcdiv __add__ __radd__ __sub__ __rsub__ "
    "__mul__ __rmul__ __truediv__ __rtruediv__ __pow__ __rpow__"
)
ATTENTION = named("scaled_dot_product_attention")
"""Its arguments are broadcast along the first dimensions alone."""


def of_examples(x: Any) -> bool:
    """Whether a value may depend on examples: the present watch knows; without one, all that is no parameter may."""
    if not isinstance(x, Tensor) or own(x) or x.ndim == 0:
        return False
    watch = current()
    return watch is None or watch.rows(x) is not None


def met(value: Any, x: Tensor, whole: bool = False) -> Any:
    """A parameter's copies, in the layout of a value of examples (and as large); NotImplemented: there is none."""
    table = getattr(value, "ids", None) is not None
    found = place(value.shape, x, expanded=table and _alike(value.ids, x))
    if found is None or (table and found.axis == len(found.rest)):
        return NotImplemented
    if table or not whole:
        return found.put(_looked_up(value, found) if table else _copies(value, found.examples)).to(value.dtype)
    radius = None if made_of(value)[1] else value.radius
    return spread(_copies(value, found.examples), found, x, radius).to(value.dtype)


def _alike(ids: Tensor, x: Tensor) -> bool:
    """Whether ids have the same entries for each example of a value, with which their rows are broadcast.

    If they have not, an example's row would depend on its place in the batch.
    """
    watch = current()
    rows = None if watch is None else watch.rows(x)
    axis = ids.ndim + 1 - x.ndim + (0 if rows is None else rows.axis)
    return watch is None or (0 <= axis < ids.ndim and watch.equal(ids, axis))


def _instead(copies: dict[int, Tensor], value: Any) -> Any:
    return copies.get(id(value), value)


def _copies(value: Any, examples: int) -> Tensor:
    parameters, function, radius = made_of(value)
    return copies_of(function, parameters, examples, radius)


def _looked_up(value: Any, found: Place) -> Tensor:
    """Rows of a table by constant ids, for each example."""
    rank, ids = len(found.rest), value.ids
    if found.axis is None:
        return lookup(ids[None], value.parameters[0], value.padding, value.radius)
    ids = ids.reshape(*[1] * (rank - ids.ndim), *ids.shape)
    ids = ids.expand(*ids.shape[: found.axis], found.examples, *ids.shape[found.axis + 1 :]).movedim(found.axis, 0)
    return lookup(ids, value.parameters[0], value.padding, value.radius)


@handles(*ELEMENTWISE, *IN_PLACE, *ATTENTION)
def elementwise(function: Any, args: Any, kwargs: Any) -> Any:
    """Functions of entries, in which a parameter is broadcast with the examples."""
    if function in IN_PLACE and own(args[0]):
        return NotImplemented
    leaves, _ = tree_flatten((args, kwargs))
    for x in filter(of_examples, leaves):
        copies = {id(p): met(p, x, function not in ATTENTION) for p in leaves if own(p)}
        if not any(c is NotImplemented for c in copies.values()):
            args, kwargs = tree_map(partial(_instead, copies), (args, kwargs))
            return function(*args, **kwargs)
    return alone(function, args, kwargs) if function in ALONE else NotImplemented


@handles(*named("expand expand_as broadcast_to repeat tile"))
def repeated(function: Any, args: Any, kwargs: Any) -> Any:
    """An expansion to the number of examples, such as a class token's."""
    value, *sizes = args
    if not own(value) or kwargs:
        return NotImplemented
    if isinstance(sizes[0], Tensor):
        copies = met(value, sizes[0]) if of_examples(sizes[0]) else NotImplemented
        return alone(function, args, kwargs) if copies is NotImplemented else copies.expand_as(sizes[0])
    sizes = list(sizes if isinstance(sizes[0], int) else sizes[0])
    watch, more = current(), len(sizes) - value.ndim
    shape = (*[1] * more, *value.shape)
    if watch is None:
        axes = [0] if shape[0] == 1 and sizes[0] != -1 else []
    else:
        axes = [k for k, n in enumerate(sizes) if n == watch.examples and shape[k] == 1]
    if more < 0 or not axes:
        return alone(function, args, kwargs)
    axis, count = axes[0], sizes[axes[0]]
    found = Place(Rows(axis), axis, (*shape[:axis], *shape[axis + 1 :]), count)
    sizes[axis] = 1 if function.__name__ in ("repeat", "tile") else count
    return function(found.put(_copies(value, count)).to(value.dtype), sizes)


def combined(function: Any, *args: Any) -> Any:
    """A function of entries, in which a parameter may be ours."""
    result = elementwise(function, args, {}) if any(own(a) for a in args) else NotImplemented
    return function(*args) if result is NotImplemented else result


def affine(x: Tensor, weight: Any, bias: Any) -> Tensor:
    """``x * weight + bias``, without those that are None."""
    x = x if weight is None else combined(torch.mul, x, weight)
    return x if bias is None else combined(torch.add, x, bias)


def applied(layer: Affine | Convolved, weight: Any, x: Tensor) -> Tensor:
    """A layer's map with a weight that is a function of parameters."""
    parameters, function, radius = made_of(weight)
    weight = weight.detach().to(x.dtype)
    return WeightGradients.apply(x, weight, layer, function, radius, *parameters)


def product(x: Any, weight: Any, transposed: bool = False) -> Any:
    """``x @ weight.T`` (or ``x @ weight``, if it is transposed) for values of examples and a matrix of ours."""
    if not (own(weight) and of_examples(x) and x.ndim > 1 and weight.ndim == 2):
        return NotImplemented
    (p, *_), function, radius = made_of(weight)
    autocast = torch.is_autocast_enabled(x.device.type)
    given = x if autocast else x.to(p.dtype)
    if function is None:
        p = p.mT if transposed else p
        found = examples_first(lambda first: LinearGradients.apply(first, p, None, None, radius, None), given)
    else:
        found = examples_first(partial(applied, Affine(transposed), weight), given)
    return found if autocast else found.to(weight.dtype)


@handles(F.linear)
def linear(function: Any, args: Any, kwargs: Any) -> Any:
    def bounded(input: Any, weight: Any, bias: Any = None) -> Any:
        if not of_examples(input):
            return alone(function, args, kwargs)
        found = product(input, weight) if own(weight) else F.linear(input, weight)
        return found if found is NotImplemented else affine(found, None, bias)

    return bounded(*args, **kwargs)


@handles(torch.addmm)
def addmm(function: Any, args: Any, kwargs: Any) -> Any:
    if kwargs or len(args) != 3:
        return NotImplemented
    found = matmul(torch.mm, args[1:], {}) if own(args[1]) or own(args[2]) else args[1] @ args[2]
    return found if found is NotImplemented else affine(found, None, args[0])


@handles(*named("matmul mm bmm __matmul__ __rmatmul__"))
def matmul(function: Any, args: Any, kwargs: Any) -> Any:
    """Products of values and matrices; of stacks of matrices by a copy of them for each example."""
    if len(args) != 2:
        return NotImplemented
    if not any(map(of_examples, args)):
        return alone(function, args, kwargs)
    left, right = reversed(args) if function is Tensor.__rmatmul__ else args
    if own(right):
        if right.ndim == 1:
            found = product(left, part(Tensor.unsqueeze, (right, 0), {}))
            return found if found is NotImplemented else found.squeeze(-1)
        copies = met(right, left) if right.ndim > 2 and of_examples(left) else NotImplemented
        return product(left, right, True) if copies is NotImplemented else left @ copies
    if left.ndim == 2 and right.ndim > 2 - (current() is not None):
        found = product(right.mT, left)
        return found if found is NotImplemented else found.mT
    copies = met(left, right) if left.ndim > 2 and of_examples(right) else NotImplemented
    return copies if copies is NotImplemented else copies @ right


@handles(torch.einsum)
def einsum(function: Any, args: Any, kwargs: Any) -> Any:
    """A matrix that is applied to the last axis of a value, or a parameter that is repeated for each example."""
    equation, *operands = args
    operands = list(operands[0]) if len(operands) == 1 and not isinstance(operands[0], Tensor) else operands
    if not isinstance(equation, str):
        return NotImplemented
    given, arrow, out = equation.replace(" ", "").partition("->")
    terms: list[Any] = given.split(",")
    if not any(map(of_examples, operands)):
        return alone(function, args, kwargs)
    if len(operands) != 2 or len(terms) != 2 or own(operands[0]) == own(operands[1]):
        return NotImplemented
    if not arrow:  # letters that occur once, sorted
        out = "".join(sorted(c for c in {*given} - {*",."} if given.count(c) == 1))
        out = "..." * ("." in given) + out
    mine = int(own(operands[1]))
    (value, x), (letters, others) = (operands[mine], operands[1 - mine]), (terms[mine], terms[1 - mine])
    for transposed in (False, True):
        to, of = (letters[::-1] if transposed else letters) if len(letters) == 2 else "  "
        if of == others[-1:] and to not in others and out == others[:-1] + to:
            return product(x, value, transposed)
    watch = current()
    rows = (Rows(0) if watch is None else watch.rows(x)) if of_examples(x) else None
    if rows is None or "." in given or rows.outer * rows.inner != 1 or others[rows.axis] in letters:
        return NotImplemented
    copies = _copies(value, x.shape[rows.axis]).to(value.dtype)
    operands[mine], terms[mine] = copies, others[rows.axis] + letters
    return torch.einsum(f"{','.join(terms)}->{out}", *operands)
