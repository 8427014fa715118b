"""Where in a model something happens, and the error that says so."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType

from torch import nn

from dplip.errors import MixedExamplesError
from dplip.separation.call import Refused


def mixed(model: nn.Module | None, operator: str, refused: Refused) -> MixedExamplesError:
    """The error for what an operator does to the examples, in the module whose forward runs."""
    path, remedy = _path(model), refused.remedy
    if any(_module(frame) == "torch.nn.utils.rnn" for frame in frames()):
        remedy = _PACKED
    elif path.endswith("Experts)"):
        remedy = _EXPERTS
    return MixedExamplesError(f"{path}: {operator} {refused.reason} {remedy}")


_PACKED = "Packing sorts the batch: give the padded batch and lengths to the bounded layer, lstm(x, lengths=lengths)."

_EXPERTS = (
    "Each expert gathers its tokens from all examples. Let each token look up the weights of its experts: in "
    'transformers model.set_experts_implementation("batched_mm"), in code of your own weights[expert_of_token]; or '
    "weigh all experts."
)


def called_from() -> tuple[str, str]:
    """The module and the function of the Python code that called torch."""
    for frame in frames():
        name = _module(frame)
        if not name.startswith("torch.") and name not in _BETWEEN:
            return name, frame.f_code.co_name
    return "", ""


_BETWEEN = {"torch", *(f"dplip.separation.{name}" for name in ("exits", "place", "shortcuts"))}


def _path(model: nn.Module | None) -> str:
    for frame in frames():
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and frame.f_code.co_name not in ("_call_impl", "_wrapped_call_impl"):
            kind = type(module).__name__
            paths = [path for path, m in model.named_modules() if m is module] if model is not None else []
            return f"{paths[0]} ({kind})" if paths and paths[0] else f"the model ({kind})" if paths else kind
    return "the model"


def frames() -> Iterator[FrameType]:
    """The Python code that is running, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))
