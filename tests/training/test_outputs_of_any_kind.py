"""Models that return plain objects, such as a dataclass: their tensors are outputs, and nothing else of them is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.enforced import CASES, Gated, items, private
from torch import Tensor, nn

from dplip.errors import ConfigurationError, DPLipError
from dplip.losses import CrossEntropy
from dplip.runtime.values import tensors_in, with_tensors


@dataclass
class Output:
    logits: Tensor
    hidden: Any = None

    @property
    def centred(self) -> Tensor:
        return self.logits - self.logits.mean(0)


@dataclass(frozen=True)
class Frozen:
    logits: Tensor
    hidden: Any = None


class Wrapped(Gated):
    """The scores in an object."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(super().forward(x))


def step(wrap: Callable[[Tensor], Any], scores: Callable[[Any], Tensor]) -> nn.Module:
    loss = CrossEntropy()
    model, optimizer, loader = private(Wrapped(wrap), loss, items(CASES["a product"]))
    for x, y in loader:
        optimizer.zero_grad()
        loss(scores(model(x)), y).backward()
        optimizer.step()
    trained: nn.Module = model
    return trained


WRAPS: dict[str, Callable[[Tensor], Any]] = {
    "a dataclass": lambda y: Output(y, {"twice": 2 * y}),
    "a frozen dataclass": lambda y: Frozen(y),
    "a namespace": lambda y: SimpleNamespace(logits=y, name="x"),
}


@pytest.mark.parametrize("name", WRAPS)
def test_a_plain_object_of_tensors_is_an_output(name: str) -> None:
    step(WRAPS[name], lambda output: output.logits)


MIXED: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "a property that mixes": (lambda y: Output(y), lambda output: output.centred),
    "an attribute that mixes": (lambda y: Output(y - y.mean(0)), lambda output: output.logits),
    "another attribute that mixes": (lambda y: Output(y, [y.mean(0)]), lambda output: output.logits),
    "an attribute of an attribute": (
        lambda y: Output(y, SimpleNamespace(inner=2 * y)),
        lambda output: output.hidden.inner,
    ),
    "a closure": (lambda y: Output(y, lambda: y.flip(0)), lambda output: output.hidden()),
}


@pytest.mark.parametrize("name", MIXED)
def test_what_an_object_computes_or_hides_is_no_output(name: str) -> None:
    with pytest.raises(DPLipError):
        step(*MIXED[name])


def test_an_object_without_tensors_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="one tensor"):
        step(lambda y: Output(None), lambda output: output.logits)  # type: ignore[arg-type]


def test_objects_are_copied_and_modules_are_not_opened() -> None:
    x = torch.zeros(2)
    output = Frozen(x, [x])
    new = with_tensors(lambda t: t + 1, output)
    assert type(new) is Frozen and bool(new.logits.all()) and not output.logits.any() and len(tensors_in(new)) == 2
    assert tensors_in(nn.Linear(2, 2)) == [] and with_tensors(torch.neg, "x") == "x"
