"""Where in a model something happens, and the error that says so."""

from __future__ import annotations

import sys
from types import FrameType

from torch import nn

from dplip.errors import MixedExamplesError
from dplip.separation.call import Refused


def mixed(model: nn.Module | None, operator: str, refused: Refused) -> MixedExamplesError:
    """The error for what an operator does to the examples, in the module whose forward runs."""
    remedy = _PACKED if "torch.nn.utils.rnn" in _callers() else refused.remedy
    return MixedExamplesError(f"{_path(model)}: {operator} {refused.reason} {remedy}")


_PACKED = "Packing sorts the batch: give the padded batch and lengths to the bounded layer, lstm(x, lengths=lengths)."


def _callers() -> set[str]:
    """The modules of all Python code that is running."""
    frame: FrameType | None = sys._getframe(1)
    found = set()
    while frame is not None:
        found.add(str(frame.f_globals.get("__name__", "")))
        frame = frame.f_back
    return found


def _path(model: nn.Module | None) -> str:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and frame.f_code.co_name not in ("_call_impl", "_wrapped_call_impl"):
            kind = type(module).__name__
            paths = [path for path, m in model.named_modules() if m is module] if model is not None else []
            return f"{paths[0]} ({kind})" if paths and paths[0] else f"the model ({kind})" if paths else kind
        frame = frame.f_back
    return "the model"


def called_from() -> str:
    """The name of the module of Python code that called torch."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if not name.startswith("torch.") and name not in ("torch", "dplip.separation.exits"):
            return name
        frame = frame.f_back
    return ""
