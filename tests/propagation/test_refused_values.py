"""Hooks, types and values of which the bounds say nothing are refused."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from helpers.refusals import refused
from helpers.sample import Calls
from torch import Tensor, nn

import dplip
from dplip import nn as dn
from dplip.errors import DPLipError


@contextmanager
def registered(register: Callable[[Callable[..., object]], Any], hook: Callable[..., object]) -> Iterator[None]:
    handle = register(hook)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize(
    "register",
    [
        torch.nn.modules.module.register_module_forward_hook,
        torch.nn.modules.module.register_module_forward_pre_hook,
        torch.nn.modules.module.register_module_full_backward_hook,
        torch.nn.modules.module.register_module_full_backward_pre_hook,
    ],
)
def test_a_global_hook_is_refused(register: Callable[[Callable[..., object]], Any]) -> None:
    with registered(register, lambda *_: None):
        assert "global hook" in refused(nn.Linear(4, 4), (4,))
    dplip.propagate(nn.Linear(4, 4), (4,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_refused(dtype: torch.dtype) -> None:
    """Its rounding, up to 0.4 percent an operation, is far beyond the slack of the bounds."""
    with pytest.raises(DPLipError, match="float32"):
        dplip.propagate(nn.Sequential(dn.BallProjection(1.0), nn.Linear(4, 4)).to(dtype), (4,))


def complex_weight() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.register_parameter("phase", nn.Parameter(torch.ones(4, dtype=torch.complex64)))
    return layer


class Constant(nn.Module):
    """A constant of some type that meets an example."""

    def __init__(self, constant: Tensor, use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.register_buffer("constant", constant)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(x, self.get_buffer("constant"))


OTHER_TYPES: dict[str, Callable[[], nn.Module]] = {
    "complex factor": lambda: Constant(torch.tensor([1 + 100j]), lambda x, c: (x * c).abs()),
    "complex term": lambda: Constant(torch.tensor([1 + 100j]), lambda x, c: (x + c).abs()),
    "complex divisor": lambda: Constant(torch.tensor([1e-3j]), lambda x, c: (x / c).abs()),
    "complex weight": complex_weight,
    "half factor": lambda: Constant(torch.ones(4).half(), lambda x, c: x * c),
    "sparse factor": lambda: Constant(torch.eye(4).to_sparse(), lambda x, c: x @ c),
    "NaN": lambda: Constant(torch.full((4,), float("nan")), lambda x, c: x * c),
    "infinity": lambda: Constant(torch.full((4,), float("inf")), lambda x, c: x + c),
}


@pytest.mark.parametrize("name", OTHER_TYPES)
def test_constants_and_weights_of_which_the_bounds_say_nothing_are_refused(name: str) -> None:
    with pytest.raises(DPLipError):
        dplip.lipschitz(OTHER_TYPES[name](), (4,))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float64])
def test_whole_and_double_constants_are_bounded_by_their_values(dtype: torch.dtype) -> None:
    model = Constant(torch.tensor([1, 0, 1, 1]).to(dtype), lambda x, c: x * c)
    assert dplip.lipschitz(model, (4,)) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize(
    "function, said",
    [(lambda x: (x, x), "returns a tuple"), (lambda x: {"y": x}, "returns a dict"), (lambda x: [x], "returns a list")],
)
def test_several_outputs_are_named_as_such(function: Callable[[Tensor], object], said: str) -> None:
    assert said in refused(Calls(function), (4,))
