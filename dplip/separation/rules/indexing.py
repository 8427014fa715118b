"""Entries chosen by indices: gather, scatter, embeddings, tensors as indices."""

from __future__ import annotations

import torch

from dplip.separation.call import Call, Carried, Dimensions, Refused, Seen, but, refuse, right, rule
from dplip.separation.rows import Label, Public, Rows


@rule("embedding")
def embedding(call: Call) -> Carried:
    indices, weight = call["indices"], call["weight"]
    return Carried([(indices, but(indices)), (weight, {1: indices.rank})])


@rule("one_hot")
def one_hot(call: Call) -> Carried:
    if call["num_classes"] < 0:
        refuse("takes the number of classes from the examples.", "Give num_classes.")
    return Carried([(call["self"], but(call["self"]))])


@rule("gather", "scatter", "scatter_add", "scatter_reduce", "take_along_dim")
def gather(call: Call) -> Carried:
    """Entry i of the result is made of entries at i in all dimensions but one."""
    rank = len(call.shape)
    dim = call["dim"] % max(rank, 1)
    return Carried([(t, but(t, dim)) for t in call.tensors if t.rank])


@rule("index_select")
def index_select(call: Call) -> Carried:
    self = call["self"]
    dim = call["dim"] % max(self.rank, 1)
    return Carried([(self, but(self, dim)), (call["index"], {0: dim})])


@rule("index_add", "index_copy", "index_fill")
def index_add(call: Call) -> Carried:
    """What is added along one dimension, at public places."""
    self = call["self"]
    dim = call["dim"] % max(self.rank, 1)
    parts: list[tuple[Seen, Dimensions]] = [(self, but(self, dim)), (call["index"], {})]
    source = call.get("source")
    if source is not None:
        parts.append((source, but(source, dim)))
    return Carried(parts)


def _layout(call: Call, self: Seen, indices: list[Seen | None]) -> tuple[list[int], int, int, list[int]]:
    """The indexed dimensions; where the indices' own begin in the result; how many they are; the dimensions left."""
    indexed = [k for k, index in enumerate(indices) if index is not None]
    rank = max(t.rank for t in indices if t is not None)
    together = indexed == list(range(indexed[0], indexed[-1] + 1))
    return indexed, indexed[0] if together else 0, rank, [k for k in range(self.rank) if k not in indexed]


@rule("index", "_unsafe_index", "index_put", "_index_put_impl", "_unsafe_index_put")
def index(call: Call) -> Carried:
    """x[..., i, j, ...]: the indices' dimensions, broadcast, stand in place of those that they index.

    An index of the batch axis itself is allowed where it is 0, 1, 2, ... in value, and each of the others belongs to
    the same example: x[torch.arange(len(x)), last].
    """
    self, indices = call["self"], list(call["indices"])
    given = [t for t in indices if t is not None]
    if any(t.dtype in (torch.bool, torch.uint8) for t in given):
        return _masked(call, self, given, indices)
    indexed, start, rank, left = _layout(call, self, indices)
    place = {k: i if i < start else i + rank for i, k in enumerate(left)}
    own: list[tuple[Seen, Dimensions]] = []
    rows = self.label if isinstance(self.label, Rows) else None
    for t in given:
        own.append((t, {k: start + k + rank - t.rank for k in range(t.rank)}))
    dimensions: dict[int, int] = dict(place)
    if rows is not None and rows.axis in indexed:
        counter = indices[rows.axis]
        assert counter is not None
        at = _counts(call, counter)
        if at is None or rows.outer != 1 or rows.inner != 1:
            refuse(
                f"takes rows of the batch by an index along dimension {rows.axis}.",
                "Index other dimensions, as in x[:, i]; for one place of each example x[torch.arange(len(x)), i] or "
                "x.gather.",
            )
        dimensions[rows.axis] = start + at + rank - counter.rank
        own = [(t, d) for t, d in own if t is not counter]
    if call.name in ("index", "_unsafe_index"):
        return Carried([(self, dimensions), *own])
    # Writing: the entries named by the indices change; dimensions of the result are those of the tensor written to.
    back = {to: k for k, to in dimensions.items()}
    values = call["values"]
    shape = rank + len(left)
    parts: list[tuple[Seen, Dimensions]] = [(self, {k: k for k in dimensions})]
    for t, d in [*own, (values, right(values, shape))]:
        parts.append((t, {k: back[to] for k, to in d.items() if to in back}))
    return Carried(parts)


def _counts(call: Call, counter: Seen) -> int | None:
    """The dimension along which an index is 0, 1, 2, ..., one for each example, and the same along all others."""
    if not isinstance(counter.label, Public):
        return None
    call.by_value = True
    for k, n in enumerate(counter.shape):
        if n == call.examples:
            steps = torch.arange(n, device=counter.value.device).reshape(
                [-1 if j == k else 1 for j in range(counter.rank)]
            )
            if bool((counter.value == steps).all()):
                return k
    return None


def _masked(call: Call, self: Seen, given: list[Seen], indices: list[Seen | None]) -> Carried:
    """A mask as the only index: reading gives as many entries as it has, writing one number keeps them in place."""
    mask = given[0]
    call.by_value = True
    if not call.has_rows:
        return Carried([(t, {}) for t in call.tensors])
    if call.name in ("index", "_unsafe_index"):
        if isinstance(mask.label, Public) and len(given) == 1:  # its dimensions become one
            at = indices.index(mask)
            after = at + mask.rank
            places = {k: k if k < at else k - mask.rank + 1 for k in range(self.rank) if not at <= k < after}
            return Carried([(self, places), (mask, {})])
        refuse(
            "takes as many entries as a mask has, which joins the examples' entries in one list.",
            "Write torch.where(mask, x, 0), or multiply by the mask.",
        )
    if indices[0] is None or len(given) > 1 or call["values"].shape not in ((), (1,)):
        raise Refused("writes several values by a mask.", "Write torch.where(mask, values, x).")
    return Carried([(self, but(self)), (mask, but(mask)), (call["values"], {})])


@rule("take", "masked_select", "nonzero", "masked_scatter", "bincount", "histc", "unique_dim", "_unique2")
def joined(call: Call) -> list[Label] | Carried:
    """Operators over all entries together."""
    return Carried([(t, {}) for t in call.tensors])


@rule("multinomial")
def multinomial(call: Call) -> Carried:
    self = call["self"]
    return Carried([(self, {0: 0} if self.rank == 2 else {})])


@rule("searchsorted")
def searchsorted(call: Call) -> Carried:
    """A sorted sequence for each row, or one for all."""
    sequence, values = call["sorted_sequence"], call["self"]
    if not isinstance(values, Seen):
        return Carried([(sequence, {})])
    shared = () if sequence.rank == 1 else (values.rank - 1,)
    return Carried([(sequence, but(sequence, sequence.rank - 1)), (values, but(values, *shared))])
