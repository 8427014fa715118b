"""Operators along dimensions of one example: sums, maxima, softmax, sorting, running sums, Fourier transforms."""

from __future__ import annotations

from dplip.separation.call import Call, Carried, but, refuse, rule, without, wrap
from dplip.separation.rules.elementwise import elementwise


@rule(
    "sum", "mean", "prod", "amax", "amin", "aminmax", "argmax", "argmin", "all", "any", "logsumexp", "norm",
    "linalg_vector_norm", "var", "std", "var_mean", "std_mean", "median", "nanmedian", "mode", "kthvalue", "nansum",
    "nanmean", "count_nonzero", "max", "min", "frobenius_norm", "cosine_similarity_entries",
)  # fmt: skip
def reduction(call: Call) -> Carried:
    """Without dimensions it is over all entries."""
    if "other" in call.args:  # the larger of two, entry by entry
        return elementwise(call)
    self = call["self"]
    used = wrap(call.get("dim"), self.rank)
    if call.has_rows and call.get("dim") is None:
        refuse(
            "computes over all entries of a tensor, of all examples.",
            "Compute over dimensions of one example alone, as in x.mean(dim=1); write torch.where in place of if. "
            "(transformers asks whether a mask of two dimensions masks anything, or tokens are padding: give it a mask "
            "of four, mask[:, None, None, :].bool(), with the causal one if there is one.)",
        )
    return Carried([(self, but(self, *used) if call.get("keepdim") else without(self, used))])


@rule(
    "softmax", "_softmax", "log_softmax", "_log_softmax", "_safe_softmax", "cumsum", "cumprod", "cummax", "cummin",
    "logcumsumexp", "_cummax_helper", "sort", "argsort", "topk", "_fft_r2c", "_fft_c2r", "_fft_c2c", "msort", "renorm",
    "softmin",
)  # fmt: skip
def along(call: Call) -> Carried:
    """What changes along a dimension, or several; the others are carried."""
    self = call["self"]
    if call.name == "renorm":  # slices along ``dim`` are each scaled by their own norm
        return Carried([(self, {call["dim"] % self.rank: call["dim"] % self.rank})])
    dims = call.get("dim")
    return Carried([(self, but(self, *wrap(0 if call.name == "msort" else dims, self.rank)))])


@rule("glu")
def glu(call: Call) -> Carried:
    return along(call)


@rule("cross", "linalg_cross")
def cross(call: Call) -> Carried:
    rank = len(call.shape)
    dim = call["dim"] % rank
    return Carried([(t, {k: k for k in range(rank) if k != dim}) for t in call.tensors])
