"""Ways out of torch, by which a tensor's entries could come back without anyone seeing where from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from dplip.separation.call import Refused
from dplip.separation.place import called_from
from dplip.separation.rows import Rows
from dplip.separation.shortcuts import QUESTIONS, shortcut

if TYPE_CHECKING:
    from dplip.separation.watch import Watch

_LEAVES = (
    "hands examples to code outside of torch, which may mix them.",
    "Compute with operators of torch.",
)
_HOOK = (
    "registers a hook on examples' gradients, which may mix them.",
    "Leave the hook out, or write an autograd function for one example.",
)
_SHARED = (
    "takes the entries of a constant of this pass out of torch's count of writes.",
    "Use .detach(), or a weight's own .data.",
)

_TENSOR: Any = Tensor
_TORCH: Any = torch
DATA = _TENSOR.data.__get__
EXITS: dict[Callable[..., Any], tuple[str, str]] = {
    **dict.fromkeys(
        [
            _TENSOR.numpy, _TENSOR.__array__, _TENSOR.tolist, _TENSOR.data_ptr, _TENSOR.untyped_storage,
            _TENSOR.storage, _TENSOR._typed_storage, _TENSOR.__dlpack__, _TENSOR.__reduce_ex__, _TENSOR.__deepcopy__,
            _TENSOR.share_memory_, _TENSOR.apply_, _TENSOR.map_, _TENSOR.map2_, _TENSOR.data.__set__,
            _TENSOR.__cuda_array_interface__.__get__, _TENSOR.__repr__, _TENSOR.__format__,
        ],
        _LEAVES,
    ),
    **dict.fromkeys([_TENSOR.register_hook, _TENSOR.register_post_accumulate_grad_hook, _TENSOR.grad.__set__], _HOOK),
}  # fmt: skip
SHARED: set[Any] = {
    DATA, _TENSOR.data.__set__, _TENSOR.set_, _TENSOR.numpy, _TENSOR.__array__, _TENSOR.__dlpack__, _TENSOR.storage,
    _TENSOR.untyped_storage, _TENSOR._typed_storage, _TORCH.from_dlpack, torch.unsafe_chunk, _TENSOR.unsafe_chunk,
    torch.unsafe_split, _TENSOR.unsafe_split, torch.unsafe_split_with_sizes, _TENSOR.unsafe_split_with_sizes,
}  # fmt: skip
"""Functions whose results share entries with their arguments behind the back of torch's count of writes."""
_DIRECT = {"compute_mode": "donot_use_mm_for_euclid_dist"}
"""By itself ``torch.cdist`` takes another kernel beyond 25 rows, which may be the examples."""
DROPOUTS: set[Any] = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d}
_LOOKED_AT: set[Any] = {*EXITS, *SHARED, F.one_hot, torch.cdist, *DROPOUTS, *QUESTIONS}


class Exits(TorchFunctionMode):
    """Refuses functions of torch that hand out examples' entries, unless this library calls them."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _LOOKED_AT:
            return func(*args, **(kwargs or {}))
        if func in EXITS or func in SHARED:
            self._check(func, args)
        answer = shortcut(func, args, kwargs)
        if answer is not None and isinstance(self._watch.rows(args[0]), Rows):
            return answer
        if func is F.one_hot:  # which reads its argument, only to say what is out of range
            with _disable_current_modes():
                return self._watch.run(torch.ops.aten.one_hot.default, args, kwargs or {})
        if func is torch.cdist:
            return func(*args, **{**(kwargs or {}), **_DIRECT} if len(args) < 4 else (kwargs or {}))
        if func in DROPOUTS:
            return self._drop(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _drop(self, func: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """Dropout as one operator, whose masks may be drawn by others: independently for each entry or plane."""
        if inplace:
            return func(input, p, training, inplace)
        with _disable_current_modes():
            return self._watch.run(torch.ops.aten.dropout.default, (input, p, training), {}, func)

    def _check(self, function: Any, args: Any) -> None:
        tensors = [t for t in args if isinstance(t, Tensor)]
        if called_from()[0].startswith("dplip."):
            return
        name = getattr(getattr(function, "__self__", None), "__name__", None) or function.__name__
        if function in SHARED and any(self._watch.made(t) for t in tensors):
            self._watch.refuse(name, Refused(*_SHARED))
        if function in EXITS and any(isinstance(self._watch.rows(t), Rows) for t in tensors):
            self._watch.refuse(name, Refused(*EXITS[function]))
