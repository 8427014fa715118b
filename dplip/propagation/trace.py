"""Tracing a model by torch.fx, with a refusal of models that cannot be traced."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.fx.proxy import TraceError

from dplip.errors import DPLipError, first_line
from dplip.propagation.graph import Root
from dplip.rules import RULES, refuse
from dplip.runtime.random_state import random_states, undisturbed


class _Proxy(fx.Proxy):
    """A proxy on which in-place operators raise, since plain fx records ``x += y`` as ``x + y``."""


def _in_place(name: str) -> Callable[..., Any]:
    def method(self: Any, *_: Any) -> Any:
        refuse("the model", name, "changes a value in place.", "Write x = x + y in place of x += y.")

    return method


for _name in "add sub mul matmul truediv floordiv mod pow and or xor lshift rshift".split():
    setattr(_Proxy, f"__i{_name}__", _in_place(f"__i{_name}__"))
for _name in ("__setitem__", "__delitem__"):
    setattr(_Proxy, _name, _in_place(_name))


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = m.__module__.startswith("torch.nn") and not isinstance(m, nn.Sequential)
        return own or RULES.of(type(m).forward) is not None

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


def trace(root: Root) -> fx.Graph:
    with undisturbed():
        before = random_states()
        try:
            graph = _Tracer().trace(root)
        except DPLipError:
            raise
        except TraceError as wrong:
            refuse(
                "the model",
                "its forward",
                f"depends on the data in its control flow{_where(wrong)}.",
                "Write it without if, while, for, len() or int() on values.",
            )
        except Exception as wrong:
            refuse(
                "the model",
                "its forward",
                f"cannot be traced by torch.fx{_where(wrong)}.",
                "Write it with layers and torch functions of its input alone.",
            )
        drawn = random_states() != before
    if drawn:
        refuse("the model", "its forward", "draws random numbers outside a layer with a rule.", "Use nn.Dropout.")
    if sum(n.op == "placeholder" for n in graph.nodes) != 1:
        refuse("the model", "its forward", "takes several inputs.", "Give it one tensor.")
    return graph


def _where(wrong: Exception) -> str:
    """What went wrong, and the last line of code that is neither torch's nor dplip's."""
    known = str(Path(torch.__file__).parent), str(Path(__file__).parents[1]), "<"
    own = [f for f in traceback.extract_tb(wrong.__traceback__) if not f.filename.startswith(known)]
    place = f", line {own[-1].lineno} of {Path(own[-1].filename).name}" if own else ""
    return f"{place} ({type(wrong).__name__}: {first_line(wrong).partition('. ')[0]})"
