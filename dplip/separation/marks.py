"""What is known of each tensor of a pass, kept on the tensor itself; and of memory that examples were written into."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from dplip.runtime.modules import modules_of
from dplip.separation.call import refuse
from dplip.separation.rows import Label, Public, Rows, alone, by_strides

MARK = "_dplip_rows"
"""The attribute of a tensor that holds its mark. An attribute stays with a tensor as long as torch keeps it."""

_KEPT = 100_000
_codes: dict[tuple[Label, torch.Size, torch.dtype], object] = {}


def code_of(label: Label, t: Tensor) -> object:
    """What stands for label, shape and type together; no number, which arguments of operators may be."""
    if len(_codes) > _KEPT:
        _codes.clear()  # later tensors have new codes, and decisions are made anew
    return _codes.setdefault((label, t.shape, t.dtype), object())


class Mark:
    """What a watch knows of a tensor.

    Attributes:
        watch: a token of the watch.
        label: where the examples are.
        constant: whether the tensor depends on no example.
        code: see :func:`code_of`.
        origin: which result of which operator it is.
        base: the tensor that this is a part of, where torch does not know.
        version: the tensor's count of writes when the mark was made; a later write may make a constant's mark untrue.
    """

    __slots__ = ("base", "code", "constant", "label", "origin", "version", "watch")

    def __init__(self, watch: object, label: Label, code: object, origin: Any, version: int) -> None:
        self.watch, self.label, self.code, self.origin, self.version = watch, label, code, origin, version
        self.constant = isinstance(label, Public)
        self.base: Tensor | None = None

    def __deepcopy__(self, memo: Any) -> Mark:
        return self

    def __reduce__(self) -> Any:  # a token is of no use elsewhere
        return Mark, (None, self.label, None, None, 0)


class Marks:
    """The marks of one watch."""

    def __init__(self, examples: int, model: nn.Module | None) -> None:
        self._token = object()
        self._examples = examples
        self._names = _names(model)
        self._given: dict[int, tuple[Tensor, Mark]] = {}
        self._claims: dict[int, tuple[StorageWeakRef, int]] = {}
        self._written: dict[int, tuple[StorageWeakRef, bool, bool]] = {}
        self._unsafe = False  # whether there are parts of tensors whose writes torch counts apart

    def put(self, t: Tensor, label: Label, code: object, origin: Any, version: int) -> None:
        """Mark a tensor: on itself, or here if it was there before the pass."""
        mark = Mark(self._token, label, code, origin, version)
        if id(t) in self._given:
            self._given[id(t)] = t, mark
        else:
            t._dplip_rows = mark  # type: ignore[attr-defined]

    def of(self, t: Tensor) -> Mark:
        """The mark of a tensor, up to date."""
        mark: Mark | None = getattr(t, MARK, None)
        if mark is None or mark.watch is not self._token:
            known = self._given.get(id(t))
            mark = known[1] if known is not None else self._met(t)
        if mark.constant and (mark.version != t._version or (self._unsafe and self._claimed(t))):
            self.mark(t, self._claimed(t) or self._overwritten(t, mark), mark.origin, t._version)
            mark = self.of(t)
        return mark

    def mark(self, t: Tensor, label: Label, origin: Any, version: int) -> None:
        self.put(t, label, code_of(label, t), origin, version)

    def enter(self, t: Tensor, origin: Any) -> None:
        """Mark an input, whose axis 0 counts the examples, and its memory."""
        self.mark(t, self.first(t), origin, t._version)
        self.hold(t, Rows(0))

    def first(self, t: Tensor) -> Rows:
        """The place of examples that axis 0 counts."""
        return Rows(0) if self._examples > 1 else alone(t.shape)

    def hold(self, t: Tensor, rows: Rows) -> None:
        """Remember that a tensor's memory has examples; while it is, no other memory is known by the same number."""
        storage = StorageWeakRef(t.untyped_storage())
        self._claims[storage.cdata] = storage, rows.inner * t.stride(rows.axis) if t.ndim else 0

    def parts(self, parts: list[Tensor], base: Tensor) -> None:
        """Remember what tensors are parts of, where torch does not."""
        self._unsafe = True
        for t in parts:
            self.of(t).base = base

    def made(self, t: Tensor) -> bool:
        """Whether a tensor is a constant that an operator of this pass has made."""
        mark: Mark | None = getattr(t, MARK, None)
        return mark is not None and mark.watch is self._token and mark.constant

    def _met(self, t: Tensor) -> Mark:
        """The mark of a tensor that no operator of this pass has made."""
        if torch._C._functorch.is_functorch_wrapped_tensor(t):
            refuse(
                "runs inside torch.func, which hides where the examples are.",
                "Call layers on the whole batch in place of vmap: they keep the examples apart.",
            )
        if t.layout != torch.strided or t.is_nested or t.is_inference():
            refuse("meets a tensor that is sparse, nested, or of inference mode.", "Use plain tensors.")
        earlier: Mark | None = getattr(t, MARK, None)
        if earlier is not None and isinstance(earlier.label, Rows):
            refuse(
                "meets a value of the examples of an earlier pass, which the model or its surroundings kept.",
                "Let each pass begin anew: reset the state in forward, or keep a mean over public data.",
            )
        label: Label | None = self._claimed(t)
        if label is None:
            if t.grad_fn is not None:
                refuse(
                    "meets a tensor that was computed outside of this forward pass, where nobody saw of what.",
                    "Compute it inside the model's forward, in the same thread and not compiled.",
                )
            label = _constant(t.shape, t.stride())
        origin = self._names.get(id(t)) or ("given", len(self._given))
        mark = Mark(self._token, label, code_of(label, t), origin, t._version)
        self._given[id(t)] = t, mark
        return mark

    def _claimed(self, t: Tensor) -> Rows | None:
        """The place of the examples in a tensor over memory that holds examples."""
        claim = self._claims.get(t.untyped_storage()._cdata)
        if claim is None:
            return None
        rows = self._placed(t, claim[1])
        if rows is None:
            refuse("reads a part of examples' memory that does not have them along one dimension.", "Index it anew.")
        return rows

    def wrote(self, t: Tensor, label: Public) -> None:
        """Remember what a constant is about to be written with, for the other views of its memory."""
        storage = StorageWeakRef(t.untyped_storage())
        _, grows, counted = self._written.get(storage.cdata, (storage, False, False))
        self._written[storage.cdata] = storage, grows or label.grows, counted or label.counted

    def _overwritten(self, t: Tensor, mark: Mark) -> Public:
        """The label of a constant that was written to after it was marked: its entries may differ now."""
        _, grows, counted = self._written.get(t.untyped_storage()._cdata, (None, True, True))
        was = mark.label
        assert isinstance(was, Public)
        return Public(frozenset(), grows or was.grows, counted or was.counted)

    def _placed(self, t: Tensor, distance: int) -> Rows | None:
        if self._examples == 1:
            return alone(t.shape)
        return by_strides(distance, t.shape, t.stride(), int(t.storage_offset()), self._examples)

    def claim(self, t: Tensor, rows: Rows) -> None:
        """Examples are about to be written into a constant: it and all views of its memory hold examples from now on.

        Allowed where this pass made the constant, and its other entries are equal along the batch axis.
        """
        part = self.of(t).base
        base = part if part is not None else t if t._base is None else t._base
        mark, storage = self.of(base), base.untyped_storage()
        distance = rows.inner * t.stride(rows.axis)
        place, mine = self._placed(base, distance), self._placed(t, distance)
        made = id(base) not in self._given and base.numel() * base.element_size() == storage.nbytes()
        other = not mark.constant and mark.label != place
        if not made or other or place is None or mine != rows:
            refuse(
                "writes examples into a constant: a buffer, a weight, or a tensor without a batch axis.",
                "Return it in place of keeping it; or make the tensor in forward: x.new_zeros(len(x), ...).",
            )
        if isinstance(mark.label, Public) and base is not t and not _alike(mark.label, place):
            refuse(
                "writes examples into a part of a tensor whose entries already differ along the batch axis.",
                "Make the tensor of equal entries: x.new_zeros(len(x), ...).",
            )
        self._claims[storage._cdata] = StorageWeakRef(storage), distance
        self.mark(base, place, mark.origin, base._version)


@functools.lru_cache(_KEPT)
def _constant(shape: tuple[int, ...], strides: tuple[int, ...]) -> Public:
    """The label of a constant of which nothing but its memory is known."""
    pairs = enumerate(zip(shape, strides, strict=True))
    return Public(frozenset(k for k, (size, stride) in pairs if size == 1 or stride == 0))


def _alike(label: Public, place: Rows) -> bool:
    return place.axis in label.equal or place in label.equal


def _names(model: nn.Module | None) -> dict[int, Any]:
    """Names of the tensors that a model holds: weights, buffers, and attributes."""
    names: dict[int, Any] = {}
    for path, module in modules_of(model).items() if model is not None else ():
        tables: list[dict[str, Any]] = [module._parameters, module._buffers, vars(module)]
        for held in tables:
            for name, value in held.items():
                if isinstance(value, Tensor):
                    names.setdefault(id(value), (path, name))
                elif type(value) in (list, tuple):
                    names.update((id(t), (path, name, i)) for i, t in enumerate(value) if isinstance(t, Tensor))
    return names
