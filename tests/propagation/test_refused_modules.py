"""Modules without a bound are refused, and the refusal says where and why."""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from helpers.refusals import refused
from helpers.sample import Calls
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import dplip
from dplip import UnboundedOperationError
from dplip import nn as dn


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last: Any = 0.0

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.last
        self.last = x
        return y


class BufferCounting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x * self.calls


class BufferAdding(BufferCounting):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1  # type: ignore[assignment]
        return x * self.calls


class WeightWriting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.linear.weight.mul_(2)
        return self.linear(x)


class Renormalising(nn.Linear):
    """A linear layer whose own forward multiplies two values; it must not inherit the rule of its base."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * x


class Hidden(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return 5 * super()._conv_forward(x, weight, bias)


class HiddenBelowAForward(Hidden):
    forward = nn.Conv2d.forward


class Called(nn.Linear):
    def __call__(self, x: Tensor) -> Tensor:
        return 5 * super().__call__(x)


class OwnAttributes(nn.Linear):
    def __getattr__(self, name: str) -> Any:
        return 100 * super().__getattr__(name) if name == "weight" else super().__getattr__(name)


class Several(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def attention() -> nn.Module:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 1, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x)[0]

    return Attention()


def recurrent() -> nn.Module:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(x)[0]

    return Recurrent()


def patched_instance() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.forward = lambda x: 5 * x  # type: ignore[assignment]
    return layer


def patched_inside() -> nn.Module:
    layer = nn.Conv2d(2, 2, 3)
    layer._conv_forward = lambda x, weight, bias: 5 * x  # type: ignore[assignment]
    return layer


def hooked(kind: str) -> nn.Module:
    layer = nn.Linear(4, 4)
    {
        "forward": lambda: layer.register_forward_hook(lambda m, x, y: 5 * y),
        "forward pre": lambda: layer.register_forward_pre_hook(lambda m, x: (5 * x[0],)),
        "backward": lambda: layer.register_full_backward_hook(lambda m, g, v: (5 * g[0],)),
        "backward pre": lambda: layer.register_full_backward_pre_hook(lambda m, v: (5 * v[0],)),
        "parameter": lambda: layer.weight.register_hook(lambda g: 5 * g),
        "accumulated": lambda: layer.weight.register_post_accumulate_grad_hook(lambda p: p.grad.mul_(5)),
    }[kind]()
    return nn.Sequential(layer)


def loose_weight() -> nn.Module:
    """A weight computed from another parameter outside the forward pass: its gradient goes elsewhere."""
    layer = nn.Linear(4, 4)
    weight = layer.weight
    del layer.weight
    layer.weight = 3 * weight
    return nn.Sequential(layer)


VECTOR, FEATURES = (4,), (2, 4, 4)
MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "batch norm 1d": (lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), VECTOR, "1: BatchNorm1d mixes"),
    "batch norm 2d": (lambda: nn.Sequential(nn.BatchNorm2d(2)), FEATURES, "0: BatchNorm2d mixes"),
    "batch norm in eval": (lambda: nn.BatchNorm2d(2).eval(), FEATURES, "BatchNorm2d"),
    "bilinear": (lambda: nn.Sequential(nn.Identity(), nn.ConvTranspose2d(2, 2, 3)), FEATURES, "ConvTranspose2d"),
    "attention": (attention, (3, 4), "attention: MultiheadAttention"),
    "lstm": (recurrent, (3, 4), "lstm: LSTM"),
    "transformer": (lambda: nn.TransformerEncoderLayer(4, 1, batch_first=True), (3, 4), "TransformerEncoderLayer"),
    "embedding": (lambda: nn.Sequential(nn.Identity(), nn.Bilinear(4, 4, 2)), VECTOR, "forward|Bilinear"),
    "product in a subclass": (lambda: Renormalising(4, 4), VECTOR, "multiplies"),
    "_conv_forward in a subclass": (lambda: Hidden(2, 2, 3), FEATURES, "Hidden changes a layer"),
    "_conv_forward below a forward": (lambda: HiddenBelowAForward(2, 2, 3), FEATURES, "HiddenBelowAForward"),
    "__call__ in a subclass": (lambda: nn.Sequential(Called(4, 4)), VECTOR, "Called"),
    "attributes in a subclass": (lambda: nn.Sequential(OwnAttributes(4, 4)), VECTOR, "OwnAttributes"),
    "forward on an instance": (patched_instance, VECTOR, "replaced"),
    "method on an instance": (patched_inside, FEATURES, "Conv2d"),
    "forward hook": (lambda: hooked("forward"), VECTOR, "0: Linear has a hook"),
    "forward pre hook": (lambda: hooked("forward pre"), VECTOR, "hook"),
    "backward hook": (lambda: hooked("backward"), VECTOR, "hook"),
    "backward pre hook": (lambda: hooked("backward pre"), VECTOR, "hook"),
    "parameter hook": (lambda: hooked("parameter"), VECTOR, "0.weight: a parameter has a hook"),
    "accumulated hook": (lambda: hooked("accumulated"), VECTOR, "0.weight: a parameter has a hook"),
    "spectral_norm": (lambda: parametrizations.spectral_norm(nn.Linear(4, 4)), VECTOR, "lower bound"),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(4, 4)), VECTOR, "parametrization"),
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Linear(4, 4)), VECTOR, "parametrization"),
    "old spectral_norm": (lambda: torch.nn.utils.spectral_norm(nn.Linear(4, 4)), VECTOR, "hook"),
    "weight from elsewhere": (loose_weight, VECTOR, "weight"),
    "reflect padding": (lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), FEATURES, "border"),
    "replicate padding": (lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="replicate"), FEATURES, "border"),
    "wide circular padding": (lambda: nn.Conv2d(2, 2, 3, padding=2, padding_mode="circular"), FEATURES, "wraps"),
    "constant padding": (lambda: nn.Sequential(nn.ConstantPad2d(1, 5.0)), FEATURES, "ConstantPad2d"),
    "constant padding 1d": (lambda: nn.Sequential(nn.ConstantPad1d(1, 5.0)), (2, 4), "ConstantPad1d"),
    "reflection layer": (lambda: nn.ReflectionPad2d(1), FEATURES, "ReflectionPad2d"),
    "ceil_mode": (lambda: nn.MaxPool2d(3, ceil_mode=True), FEATURES, "ceil_mode"),
    "ceil_mode of averages": (lambda: nn.AvgPool2d(3, ceil_mode=True), FEATURES, "ceil_mode"),
    "uncounted padding": (lambda: nn.AvgPool2d(3, padding=1, count_include_pad=False), FEATURES, "count_include_pad"),
    "divisor": (lambda: nn.AvgPool2d(2, divisor_override=1), FEATURES, "divisor_override"),
    "windows of padding": (lambda: nn.MaxPool1d(2, 1, 1, 5), (1, 4), "MaxPool1d"),
    "uneven windows": (lambda: nn.AdaptiveAvgPool2d(3), FEATURES, "uneven"),
    "growing windows": (lambda: nn.AdaptiveAvgPool2d(8), FEATURES, "uneven"),
    "growing windows of a vector": (lambda: nn.AdaptiveAvgPool1d(5), (3,), "AdaptiveAvgPool1d"),
    "growing maxima of a vector": (lambda: nn.AdaptiveMaxPool1d(5), (3,), "AdaptiveMaxPool1d"),
    "growing windows of one channel": (lambda: nn.AdaptiveAvgPool2d((5, 3)), (3, 3), "AdaptiveAvgPool2d"),
    "scaled layer norm": (lambda: nn.LayerNorm(4), VECTOR, "elementwise_affine"),
    "scaled group norm": (lambda: nn.GroupNorm(1, 2), FEATURES, "affine"),
    "scaled instance norm": (lambda: nn.InstanceNorm2d(2, affine=True), FEATURES, "InstanceNorm2d"),
    "tracked instance norm": (lambda: nn.InstanceNorm2d(2, track_running_stats=True), FEATURES, "InstanceNorm2d"),
    "instance norm of a vector": (lambda: nn.InstanceNorm1d(4), VECTOR, "InstanceNorm1d"),
    "sort over the batch": (lambda: nn.Sequential(dn.FullSort(dim=0)), VECTOR, "dim=0"),
    "group sort over the batch": (lambda: nn.Sequential(dn.GroupSort(1, dim=-2)), VECTOR, "dim=-2"),
    "softmax over the batch": (lambda: nn.Softmax(0), VECTOR, "dim=0"),
    "softmax over whatever": (lambda: nn.Softmax(), FEATURES, "dim=None"),
    "flatten of the batch": (lambda: nn.Flatten(0), VECTOR, "Flatten|flatten"),
    "in place layer": (lambda: nn.Sequential(nn.ReLU(inplace=True)), VECTOR, "0: ReLU changes its input in place"),
    "in place dropout": (lambda: nn.Sequential(nn.Dropout(0.5, inplace=True)), VECTOR, "in place"),
    "in place by another name": (lambda: nn.Sequential(nn.Hardswish(inplace=cast(bool, 1))), VECTOR, "in place"),
    "exponential unit": (lambda: nn.CELU(-1.0), VECTOR, "CELU"),
    "softplus that jumps": (lambda: nn.Softplus(threshold=-3.0), VECTOR, "threshold"),
    "counter": (Counting, VECTOR, "other results"),
    "memory": (Remembering, VECTOR, "other results|several"),
    "counter in a buffer": (BufferCounting, VECTOR, "in place"),
    "counter added to a buffer": (BufferAdding, VECTOR, "in place"),
    "written weight": (WeightWriting, VECTOR, "in place"),
    "several inputs": (Several, VECTOR, "input|argument"),
    "several outputs": (lambda: Calls(lambda x: (x, x)), VECTOR, "one tensor|several"),
    "named outputs": (lambda: Calls(lambda x: {"y": x}), VECTOR, "one tensor|several"),
    "no output": (lambda: Calls(lambda x: None), VECTOR, "one tensor|several"),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_module_without_a_bound_is_refused(name: str) -> None:
    build, shape, said = MODULES[name]
    torch.manual_seed(0)
    message = refused(build(), shape)
    assert any(part in message for part in said.split("|")), message


def test_the_place_of_a_refusal_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), Calls(lambda x: x * x)))
    assert refused(model, (4,)).startswith("1.1: ")
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4)))
    assert refused(model, (4,)).startswith("1.1: ")


def test_a_refused_counter_in_a_buffer_has_not_counted() -> None:
    model = BufferCounting()
    refused(model, (4,))
    assert float(model.get_buffer("calls")) == 0.0


def test_batch_normalisation_is_an_affine_map_in_evaluation_mode_and_keeps_no_count_when_refused() -> None:
    layer = nn.BatchNorm1d(4).requires_grad_(False).eval()
    layer.running_var.fill_(0.25)
    layer.running_mean.fill_(3.0)
    assert dplip.lipschitz(layer, (4,)) == pytest.approx(2.0, rel=1e-3)
    assert "mixes the examples" in refused(layer.train(), (4,))
    assert float(layer.running_mean[0]) == 3.0 and int(layer.get_buffer("num_batches_tracked")) == 0
    assert "mixes the examples" in refused(nn.BatchNorm1d(4, track_running_stats=False).eval(), (4,))
    with pytest.raises(UnboundedOperationError, match="'weight'"):
        dplip.sensitivity(
            nn.Sequential(dn.BallProjection(1.0), nn.BatchNorm1d(4).eval()), dplip.losses.CrossEntropy(), (4,)
        )
