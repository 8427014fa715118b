"""Questions about a whole batch by which a library chooses a faster way to the same result: they are answered with no.

transformers asks whether a padding mask masks nothing, and then leaves it out. Every such question is asked where the
library also has code for compiled models, which cannot ask: it goes on with the mask. So "no" gives the same values, by
the same operators for every batch. (One more question serves a warning alone.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dplip.separation.place import called_from

_ASKED = {Tensor.all, Tensor.any, torch.all, torch.any, Tensor.__contains__}
_SUMS = {Tensor.sum, torch.sum}
QUESTIONS = _ASKED | _SUMS
_ASKERS = {
    ("transformers.masking_utils", None),  # each function in it that asks is_tracing() first, and fast_all()
    ("transformers.modeling_utils", "warn_if_padding_and_no_attention_mask"),
}


def shortcut(function: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
    """The answer to a known question about all entries of a tensor; None: it is none."""
    if function not in QUESTIONS:
        return None
    if len(args) > (2 if function is Tensor.__contains__ else 1) or kwargs:
        return None
    module, name = called_from()
    if not {(module, None), (module, name)} & _ASKERS:
        return None
    return -1 if function in _SUMS else False  # fast_all compares a sum with a count
