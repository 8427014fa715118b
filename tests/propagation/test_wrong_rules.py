"""Rules that are wrong: of shape, of mixing, of a forgotten parameter."""

import pytest
import torch
from helpers.refusals import refused
from torch import Tensor, nn

import dplip
from dplip import Norms, UnboundedOperationError
from dplip.errors import DPLipError


def test_a_rule_that_gets_a_shape_wrong_is_an_error(rules_as_before: None) -> None:
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :2]

    @dplip.rule(Half)
    def half(module: Half, x: Norms) -> tuple[Norms, object]:
        return x, lambda v: ((v,), {})

    with pytest.raises(DPLipError, match="shape"):
        dplip.propagate(Half(), (4,))


def test_a_rule_for_a_layer_that_mixes_examples_is_refused(rules_as_before: None) -> None:
    class Relative(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0)

    @dplip.rule(Relative)
    def relative(module: Relative, x: Norms) -> tuple[Norms, object]:
        return x, lambda v: ((v,), {})

    with pytest.raises(UnboundedOperationError, match="depend on another"):
        dplip.propagate(nn.Sequential(nn.Linear(3, 3), Relative()), (3,))


def test_a_rule_that_forgets_a_parameter_is_an_error(rules_as_before: None) -> None:
    class Gain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.gain

    @dplip.rule(Gain)
    def gain(module: Gain, x: Norms) -> tuple[Norms, object]:
        return x, lambda v: ((v,), {})

    assert "does not bound" in refused(Gain(), (4,))


def test_a_subclass_that_only_builds_differently_keeps_the_rule() -> None:
    class Wide(nn.Linear):
        """A documented subclass."""

        def __init__(self, width: int) -> None:
            super().__init__(width, 2 * width)

        def extra_repr(self) -> str:
            return "wide"

    assert set(dplip.parameter_bounds(Wide(4), (4,), Norms((4,), l2=1.0))) == {"weight", "bias"}
