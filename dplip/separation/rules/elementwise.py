"""Operators on single entries: arithmetic, activations, comparisons, masks, random numbers by entry."""

from __future__ import annotations

from dplip.separation.call import Call, Carried, Seen, right, rule
from dplip.separation.rows import Rows


@rule(
    # every operator with torch's tag "pointwise" comes here too
    "_to_copy", "clone", "contiguous", "alias", "detach", "lift_fresh", "lift", "_conj", "conj", "_neg_view", "real",
    "imag", "view_dtype", "masked_fill", "where", "clamp", "dropout", "native_dropout", "bernoulli",
    "poisson", "binomial", "_standard_gamma", "softplus", "glu_jvp", "hardswish", "log_sigmoid_forward",
    "_prelu_kernel", "rrelu_with_noise", "isin", "polar", "complex", "view_as_real_copy", "floor_divide",
    "hardtanh", "leaky_relu", "elu", "isreal", "_pin_memory", "special_log_ndtr", "bucketize",
    "__and__", "__or__", "__xor__", "__lshift__", "__rshift__", "_fake_quantize_learnable_per_tensor_affine",
)  # fmt: skip
def elementwise(call: Call) -> Carried:
    """Entry i of the result depends on entry i of each argument, sizes broadcast."""
    return Carried([(t, right(t, len(call.shape))) for t in call.tensors])


@rule("normal", sized=("size",))
def normal(call: Call) -> Carried:
    """Drawn for each entry of the mean and the deviation, or of a shape."""
    return elementwise(call) if call.tensors else overwritten(call)


@rule("copy")
def copy(call: Call) -> Carried:
    """What was there is overwritten; its examples, if it has any, must be those of the source."""
    parts = [t for t in (call["self"], call["src"]) if t is call["src"] or isinstance(t.label, Rows)]
    return Carried([(t, right(t, len(call.shape))) for t in parts])


@rule("fill")
def fill(call: Call) -> Carried:
    return elementwise(call) if isinstance(call["value"], Seen) else overwritten(call)


@rule("zero", "uniform", "exponential", "random", "cauchy", "log_normal", "geometric")
def overwritten(call: Call) -> Carried:
    """All entries are set alike, or drawn alike and independently."""
    rank = len(call.shape)
    kept = [(t, right(t, rank)) for t in call.tensors if isinstance(t.label, Rows)]
    return Carried(kept, frozenset(range(rank)))
