"""Tensors that are made of nothing: filled, drawn, or counted."""

from __future__ import annotations

from dplip.separation.call import Call, Carried, refuse, rule
from dplip.separation.rows import Label, Public


def _grows(call: Call) -> bool:
    return any(n % call.examples == 0 for shape in call.shapes for n in shape)


@rule(
    "zeros", "ones", "empty", "full", "rand", "randn", "randint", "new_zeros", "new_ones", "new_empty", "new_full",
    "empty_strided", "new_empty_strided", "zeros_like", "ones_like", "empty_like", "full_like", "rand_like",
    "randn_like", "randint_like", "scalar_tensor", "empty_permuted", sized=("size",),
)  # fmt: skip
def alike(call: Call) -> list[Label]:
    """All entries are equal, or drawn alike and independently; those of a tensor that is only alike have no part."""
    shape = call.shape
    return [Public(frozenset(range(len(shape))), _grows(call))]


@rule("arange", "eye", "randperm", "linspace", "tril_indices", "triu_indices", sized=("end", "n", "m"))
def ordered(call: Call) -> list[Label]:
    return [Public(frozenset(k for k, n in enumerate(call.shape) if n == 1), _grows(call))]


@rule("_local_scalar_dense", "is_nonzero", "equal", "is_same_size", "sym_size", "item")
def number(call: Call) -> Carried:
    """A Python number: no dimension is left."""
    if call.has_rows:
        refuse(
            "reads a number off examples, which the code may then use for any of them.",
            "Keep it a tensor: write torch.where(condition, a, b) in place of if, x.gather or torch.arange(len(x)) in "
            "place of an index.",
        )
    return Carried([(t, {}) for t in call.tensors])
