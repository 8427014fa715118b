"""Views and other operators that only move entries."""

from __future__ import annotations

from dataclasses import replace

from dplip.separation.call import Call, Carried, Refused, Seen, but, refuse, rule, wrap
from dplip.separation.rows import UNKNOWN, Label, Public, Rows, at_step, step, viewed_equal


def _growing(call: Call, seen: Seen) -> Seen:
    """A constant whose new sizes may grow with the number of examples."""
    if isinstance(seen.label, Public) and any(n % call.examples == 0 for n in call.shape):
        return seen._replace(label=replace(seen.label, grows=True))
    return seen


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", sized=("size",))
def view(call: Call) -> list[Label]:
    """Entries keep their order: the example of each is a digit of its position, which one dimension must hold."""
    self, new = call["self"], call.shape
    if isinstance(self.label, Public):
        return [replace(self.label, equal=viewed_equal(self.label.equal, self.shape, new, call.examples))]
    found = at_step(step(self.label, self.shape), new, call.examples)
    if found is None:
        refuse(
            f"makes shape {new} of shape {self.shape}, where examples are along dimension {self.label.axis}: no one "
            "dimension of the new shape has them, so they would mix.",
            "Keep the batch a dimension of its own: x.flatten(1), x.view(len(x), -1); after a transpose, transpose "
            "back before the view.",
        )
    return [found]


@rule("as_strided", sized=("size",))
def as_strided(call: Call) -> list[Label]:
    """Refused, but for other strides of dimensions of size 1, which move nothing (torch's pooling sets them)."""
    self, offset = call["self"], call["storage_offset"]
    call.by_value = True
    new = [s for n, s in zip(call["size"], call["stride"], strict=True) if n != 1]
    if tuple(call["size"]) == self.shape and new == [
        s for n, s in zip(self.shape, self.strides, strict=True) if n != 1
    ]:
        if offset is None:
            return [self.label]
    if isinstance(self.label, Rows):
        refuse("reads memory by its own strides, where examples cannot be followed.", "Use view, expand or unfold.")
    return [UNKNOWN]


@rule("permute")
def permute(call: Call) -> Carried:
    self = call["self"]
    return Carried([(self, {d % self.rank: i for i, d in enumerate(call["dims"])})])


@rule("transpose")
def transpose(call: Call) -> Carried:
    self = call["self"]
    if not self.rank:
        return Carried([(self, {})])
    a, b = call["dim0"] % self.rank, call["dim1"] % self.rank
    return Carried([(self, {k: b if k == a else a if k == b else k for k in range(self.rank)})])


@rule("t", "numpy_T", "mT")
def t(call: Call) -> Carried:
    self = call["self"]
    return Carried([(self, {k: self.rank - 1 - k for k in range(self.rank)})])


@rule("expand", sized=("size",))
def expand(call: Call) -> Carried:
    """New entries along a dimension repeat the one that was there."""
    self, shape = _growing(call, call["self"]), call.shape
    lead = len(shape) - self.rank
    new = frozenset(k for k in range(len(shape)) if k < lead or self.shape[k - lead] != shape[k])
    return Carried([(self, {k: k + lead for k in range(self.rank)})], new)


@rule("repeat", sized=("repeats",))
def repeat(call: Call) -> list[Label]:
    self, shape = call["self"], call.shape
    lead = len(shape) - self.rank
    if isinstance(self.label, Rows):
        if call["repeats"][lead + self.label.axis] != 1:
            refuse("repeats examples along the batch axis.", "Repeat along another dimension.")
        return [self.label.moved(lead + self.label.axis)]
    equal: set[int | Rows] = {k for k in range(len(shape)) if k < lead or self.shape[k - lead] == 1}
    equal |= {k + lead for k in self.label.equal if isinstance(k, int)}
    for k, times in enumerate(call["repeats"]):  # one copy for each example
        if times == call.examples:
            equal.add(Rows(k, 1, shape[k] // times))
    grows = self.label.grows or any(n % call.examples == 0 for n in shape)
    return [replace(self.label, equal=frozenset(equal), grows=grows)]


@rule("unsqueeze")
def unsqueeze(call: Call) -> Carried:
    self = call["self"]
    at = call["dim"] % (self.rank + 1)
    return Carried([(self, {k: k + (k >= at) for k in range(self.rank)})], frozenset([at]))


@rule("squeeze")
def squeeze(call: Call) -> Carried:
    self = call["self"]
    dims = wrap(call.get("dim"), self.rank)
    gone = [k for k in dims if self.shape[k] == 1]
    if isinstance(self.label, Rows) and self.label.axis in dims:
        refuse(
            "drops the batch axis of a batch of one example.",
            "Name the dimensions that go: x.squeeze(-1), or x.flatten(1).",
        )
    return Carried([(self, {k: i for i, k in enumerate(k for k in range(self.rank) if k not in gone)})])


def _one(call: Call, seen: Seen, dim: int) -> Seen:
    """A constant whose part along a dimension with equal entries says nothing of how many they are."""
    if isinstance(seen.label, Public) and dim in seen.label.equal:
        return seen._replace(shape=tuple(1 if k == dim else n for k, n in enumerate(seen.shape)))
    return seen


def _taken(call: Call, seen: Seen, dim: int) -> None:
    if isinstance(seen.label, Rows) and seen.label.axis == dim:
        refuse(
            f"takes single examples out of the batch (dimension {dim}).",
            "Take parts of each example, as in x[:, 0], and treat all examples alike.",
        )


@rule("select")
def select(call: Call) -> Carried:
    self = call["self"]
    dim = call["dim"] % self.rank
    _taken(call, self, dim)
    return Carried([(_one(call, self, dim), {k: k - (k > dim) for k in range(self.rank) if k != dim})])


@rule("unbind")
def unbind(call: Call) -> Carried:
    return select(call)


@rule("slice", sized=("end",))
def slice_(call: Call) -> Carried:
    """A part along one dimension, or all of it."""
    self = call["self"]
    dim = call["dim"] % self.rank
    if call.shape[dim] == self.shape[dim] and call["step"] == 1:
        return Carried([(self, but(self))])
    _taken(call, self, dim)
    fresh = frozenset([dim]) if isinstance(self.label, Public) and dim in self.label.equal else frozenset()
    return Carried([(_growing(call, _one(call, self, dim)), but(self, dim))], fresh)


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "unsafe_chunk", "unfold")
def split(call: Call) -> Carried:
    self = call["self"]
    dim = (call["dimension"] if call.name == "unfold" else call["dim"]) % max(self.rank, 1)
    _taken(call, self, dim)
    return Carried([(_one(call, self, dim), but(self, dim))])


@rule("cat", "concat", "concatenate")
def cat(call: Call) -> Carried:
    parts = [t for t in call["tensors"] if t.rank > 1 or t.shape != (0,) or len(call.shape) == 1]
    dim = call["dim"] % len(call.shape)
    if any(isinstance(t.label, Rows) and t.label.axis == dim for t in parts):
        refuse("joins tensors along the batch axis.", "Join along another dimension: torch.cat([a, b], dim=1).")
    return Carried([(t, but(t, dim)) for t in parts])


@rule("stack", "_stack")
def stack(call: Call) -> Carried:
    at = call["dim"] % len(call.shape)
    return Carried([(t, {k: k + (k >= at) for k in range(t.rank)}) for t in call["tensors"]])


@rule("flip", "roll")
def flip(call: Call) -> Carried:
    """Without dimensions all entries are rolled together."""
    self = call["self"]
    return Carried([(self, but(self, *wrap(call["dims"], self.rank)))])


@rule("constant_pad_nd", "pad")
def pad(call: Call) -> Carried:
    self, pads = call["self"], call["pad"]
    padded = [self.rank - 1 - i // 2 for i, n in enumerate(pads) if n]
    return Carried([(self, but(self, *padded))])


@rule("tril", "triu")
def triangle(call: Call) -> Carried:
    """Zeros in each matrix by its last two dimensions."""
    self = call["self"]
    return Carried([(self, but(self, self.rank - 2, self.rank - 1))])


@rule("diagonal", "diagonal_copy")
def diagonal(call: Call) -> Carried:
    self = call["self"]
    gone = [call["dim1"] % self.rank, call["dim2"] % self.rank]
    kept = [k for k in range(self.rank) if k not in gone]
    return Carried([(self, {k: i for i, k in enumerate(kept)})])


@rule("diag_embed")
def diag_embed(call: Call) -> Carried:
    self, rank = call["self"], len(call.shape)
    new = [call["dim1"] % rank, call["dim2"] % rank]
    kept = [k for k in range(rank) if k not in new]
    return Carried([(self, dict(enumerate(kept)))])


@rule("view_as_real", "view_as_complex")
def pairs(call: Call) -> Carried:
    """The last dimension has real and imaginary parts."""
    self = call["self"]
    return Carried([(self, {k: k for k in range(min(self.rank, len(call.shape)))})])


@rule("repeat_interleave")
def repeat_interleave(call: Call) -> Carried:
    if "self" not in call.args:
        raise Refused("repeats by numbers in a tensor.", "Give the number of repeats as a Python number.")
    self = call["self"]
    if call.get("dim") is None:
        return Carried([(self, {})])
    return Carried([(self, but(self, call["dim"] % self.rank))])
