"""Functions that ``torch.compile`` leaves alone, without the seconds that importing its compiler takes."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch


def uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which runs as Python, at a break of the graph, where it is called in compiled code.

    ``torch.compiler.disable`` does that, and imports the compiler. It is asked only once somebody else has.
    """

    disabled: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not disabled and "torch._dynamo" in sys.modules:
            disabled.append(torch.compiler.disable(function))
        return (disabled or [function])[0](*args, **kwargs)

    call._torchdynamo_disable = True  # type: ignore[attr-defined]  # the mark that the compiler looks for
    return call
