"""Models with weights of functions, or used outside of their layers: neighbouring sums lie within the bounds."""

from __future__ import annotations

import pytest
import torch
from helpers.zoo.cases import Case
from helpers.zoo.separate_sequences import SEQUENCES
from helpers.zoo.separate_vectors import VECTORS
from helpers.zoo.separate_weights import WEIGHTS
from torch import Tensor

import dplip
from dplip.errors import UnboundedOperationError
from dplip.runtime.example import Call, Example
from dplip.sensitivities.enforced_model import EnforcedModel

NAMES = ("a scan by hand", "bilinear", "frames as more examples and back")
CASES: dict[str, Case] = {**WEIGHTS, **{name: case for name, case in {**VECTORS, **SEQUENCES}.items() if name in NAMES}}


@pytest.mark.parametrize("name", CASES)
def test_one_more_example_moves_no_sum_beyond_its_bound(name: str) -> None:
    torch.manual_seed(0)
    case = CASES[name]
    model = dplip.nn.bound_gradients(case.model().train(), 0.5)
    items = [case.kind.item(i) for i in range(6)]
    enforced = EnforcedModel(model, Example.of(items[0]))
    parts = [item if isinstance(item, tuple) else (item,) for item in items]
    inputs = [torch.stack(column) for column in zip(*parts, strict=True)]
    reached = 0.0
    for size in (0.1, 10.0, 1e4):
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn_like(p))
        v = size * torch.randn(6, 3).sign()
        given = [t * size**0.25 if t.is_floating_point() else t for t in inputs]
        gradients = []
        for rows in (slice(0, 6), slice(0, 5)):
            call: Call = tuple(t[rows] for t in given), {}
            with enforced.watch(call) as watch:
                output: Tensor = model(*call[0])
            uses = enforced.uses([output])
            assert enforced.problem(call, watch, [output], uses) is None
            model.zero_grad()
            output.backward(v[rows])
            gradients.append({n: p.grad.double().clone() for n, p in model.named_parameters() if p.grad is not None})
        for n, use in uses.items():
            apart = float((gradients[0][n] - gradients[1][n]).norm())
            assert apart <= use.bound * (1 + 1e-4), n
            reached = max(reached, apart / use.bound)
    assert reached > 0.99


def test_a_lent_weight_counts_both_uses() -> None:
    model = dplip.nn.bound_gradients(WEIGHTS["a weight as data"].model().train(), 0.5)
    enforced = EnforcedModel(model, Example.of(torch.randn(6)))
    assert {name: use.bound for name, use in enforced.planned.items()} == {
        "a.weight": 1.0, "a.bias": 0.5, "head.weight": 0.5, "head.bias": 0.5
    }  # fmt: skip


def test_a_layer_whose_radius_follows_the_gradients_lends_no_weight() -> None:
    model = dplip.nn.bound_gradients(WEIGHTS["a weight as data"].model().train(), "auto")
    with pytest.raises(UnboundedOperationError, match=r"a\.weight"):
        EnforcedModel(model, Example.of(torch.randn(6)))
