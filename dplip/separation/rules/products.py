"""Products of matrices and what is solved from them."""

from __future__ import annotations

from dplip.separation.call import Call, Carried, Dimensions, Seen, right, rule


def _with_bias(call: Call, parts: list[tuple[Seen, Dimensions]]) -> Carried:
    added = call.get("self")
    if call.name in ("addmm", "baddbmm", "addmv", "addbmm", "addr", "_addmm_activation") and added is not None:
        parts.append((added, right(added, len(call.shape))))
    return Carried(parts)


@rule("mm", "addmm", "_addmm_activation")
def mm(call: Call) -> Carried:
    a, b = (call["mat1"], call["mat2"]) if "mat1" in call.args else (call["self"], call["mat2"])
    return _with_bias(call, [(a, {0: 0}), (b, {1: 1})])


@rule("bmm", "baddbmm")
def bmm(call: Call) -> Carried:
    a, b = (call["batch1"], call["batch2"]) if "batch1" in call.args else (call["self"], call["mat2"])
    return _with_bias(call, [(a, {0: 0, 1: 1}), (b, {0: 0, 2: 2})])


@rule("mv", "addmv")
def mv(call: Call) -> Carried:
    a, b = (call["mat"], call["vec"]) if "mat" in call.args else (call["self"], call["vec"])
    return _with_bias(call, [(a, {0: 0}), (b, {})])


@rule("dot", "vdot")
def dot(call: Call) -> Carried:
    return Carried([(t, {}) for t in call.tensors])


@rule("addr")
def outer(call: Call) -> Carried:
    return _with_bias(call, [(call["vec1"], {0: 0}), (call["vec2"], {0: 1})])


@rule("linear")
def linear(call: Call) -> Carried:
    x, rank = call["input"], len(call.shape)
    parts: list[tuple[Seen, Dimensions]] = [(x, {k: k for k in range(x.rank - 1)}), (call["weight"], {0: rank - 1})]
    if call.get("bias") is not None:
        parts.append((call["bias"], {0: rank - 1}))
    return Carried(parts)


@rule("_trilinear")
def trilinear(call: Call) -> Carried:
    """A sum of products of three tensors, each with new dimensions, over some dimensions."""
    summed = call["sumdim"]
    parts = []
    for t, new in ((call[f"i{n}"], call[f"expand{n}"]) for n in (1, 2, 3)):
        places = [k for k in range(t.rank + len(new)) if k not in new]
        parts.append((t, {i: k - sum(s < k for s in summed) for i, k in enumerate(places) if k not in summed}))
    return Carried(parts)


@rule("_cdist_forward", "cdist", "_euclidean_dist")
def cdist(call: Call) -> Carried:
    """Distances of rows of matrices in the last two dimensions."""
    rank = len(call.shape)
    a, b = call["x1"], call["x2"]
    left = {k: k + rank - a.rank for k in range(a.rank - 1)}
    return Carried([(a, left), (b, {**{k: k + rank - b.rank for k in range(b.rank - 2)}, b.rank - 2: rank - 1})])


@rule(
    "linalg_inv_ex", "linalg_cholesky_ex", "linalg_qr", "_linalg_svd", "_linalg_eigh", "_linalg_det", "_linalg_slogdet",
    "linalg_lu_factor_ex", "linalg_matrix_exp", "linalg_lu", "linalg_pinv", "matrix_exp",
)  # fmt: skip
def of_matrices(call: Call) -> Carried:
    """Each matrix of the last two dimensions by itself."""
    a = call.tensors[0]
    return Carried([(a, {k: k for k in range(a.rank - 2)})])


@rule("_linalg_solve_ex", "linalg_solve_triangular")
def solve(call: Call) -> Carried:
    """Matrices on both sides alone: a vector on the right has dimensions of another meaning."""
    rank = len(call.shape)
    same = all(t.rank == rank for t in call.tensors)
    return Carried([(t, {k: k for k in range(rank - 2)} if same else {}) for t in call.tensors])
