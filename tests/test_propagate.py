"""Ordinary idioms are walked as they are written, and bounded; whatever has no rule is refused, and says why."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from laws import Calls, attack, claims, set_weights, worst
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import dplip
from dplip import Norms, UnboundedInputError, UnboundedOperationError
from dplip import nn as dn
from dplip.errors import DPLipError
from dplip.propagation import Walk

# ------------------------------------------------------------------------------------------------ idioms


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(x)))


class Net(nn.Module):
    """As people write it: layers, functional calls, a residual sum, a view by the batch's size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.blocks = nn.ModuleList([Block(12), Block(12)])
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.relu(self.conv(x)), 2)
        x = x.view(x.size(0), -1)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Buffered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("mean", torch.linspace(-1, 1, 4))
        self.register_buffer("std", torch.linspace(0.5, 2, 4))
        self.register_buffer("mask", torch.tensor([True, False, True, True]))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear((x - self.mean) / self.std) * self.mask + self.std * 2


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
        self.scale = nn.Parameter(torch.randn(6), requires_grad=False)
        self.body.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x) * (2 * self.scale))


class Autoencoder(nn.Module):
    """The weight of one layer is used by two more, as a functional call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.second(torch.tanh(self.first(x))), self.first.weight, bias=self.bias)


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared, self.head = nn.Linear(3, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.chunk(x, 2, dim=1)
        return self.head(torch.cat([self.shared(a), self.shared(b)], dim=-1))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.weight = nn.Parameter(torch.randn(3, 2, 2, 2)), nn.Parameter(torch.randn(2, 3))
        self.gain, self.shift = nn.Parameter(torch.randn(3, 1, 1)), nn.Parameter(torch.randn(()))

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.kernel, stride=2) * self.gain - self.shift
        return F.linear(F.avg_pool2d(y, 2).flatten(1), self.weight)


class Sized(nn.Module):
    """Shapes read and written every usual way."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = x.permute(0, 2, 3, 1).reshape(b, h * w, c)
        y = y.transpose(1, 2).contiguous().view(b, -1)
        y = y.view(y.size(0), c, -1).mean(-1) / c
        return y.unsqueeze(1).expand(-1, 2, -1).squeeze(2).reshape(x.shape[0], -1)


class Split(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a, b, c = x.split(2, dim=1)
        first, second = x[:, :3], x[:, 3:]
        return torch.cat((a - b, c, F.relu(first) + second, torch.stack((a, b), dim=1).flatten(1)), 1)


def sequential() -> nn.Module:
    inner = nn.Sequential(nn.Identity(), nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), dn.GroupSort(2)), nn.AvgPool2d(2))
    return nn.Sequential(inner, nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, 2))


def twice() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.Sequential(layer))


MAP = (2, 4, 4)
IDIOMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "a net": (Net, MAP),
    "residual": (lambda: Block(4), (4,)),
    "nested sequential": (sequential, MAP),
    "buffers": (Buffered, (4,)),
    "frozen": (Frozen, (4,)),
    "tied": (Autoencoder, (4,)),
    "shared on halves": (Siamese, (6,)),
    "shared in a chain": (twice, (4,)),
    "functional": (Functional, MAP),
    "shapes": (Sized, (2, 4, 4)),
    "split": (Split, (6,)),
    "constraints": (lambda: nn.Sequential(dn.OrthogonalLinear(4, 6), dn.MaxMin(), dn.SpectralLinear(6, 2)), (4,)),
    "global mean": (lambda: Calls(lambda x: x.mean(dim=(2, 3))), MAP),
    "flatten": (lambda: Calls(lambda x: x.flatten(1) * 0.5 + 1), MAP),
    "unsqueeze": (lambda: Calls(lambda x: F.relu(x.unsqueeze(1)).squeeze(1)), (4,)),
    "shape of another": (lambda: Calls(lambda x: F.relu(x).reshape(x.size())), (4,)),
    "softmax": (lambda: Calls(lambda x: F.softmax(x, dim=1)), (4,)),
    "abs": (lambda: Calls(lambda x: abs(x) - abs(-x)), (4,)),
    "integer mask": (lambda: Calls(lambda x: x * torch.tensor([1, 0, 2, 1])), (4,)),
    "single layer": (lambda: nn.Linear(4, 2), (4,)),
    "identity": (nn.Identity, (4,)),
}


@pytest.mark.parametrize("name", IDIOMS)
def test_an_ordinary_idiom_is_bounded(name: str) -> None:
    build, shape = IDIOMS[name]
    torch.manual_seed(0)
    model = build().double().eval()
    walk = Walk(model, shape)
    for family in ("random", "equal"):
        set_weights(model, family)
        claimed, found = claims(walk, 2.0), attack(walk, model, 2.0, count=1, steps=4)
        expected = {n for n, p in model.named_parameters() if p.requires_grad}
        assert expected == {key[0] for key in claimed} - {"output", "input"}
        ratio, where = worst(claimed, found.value)
        assert ratio <= 1 + 1e-9, where


def test_a_tied_weight_is_one_parameter_whose_uses_add() -> None:
    layer = nn.Linear(3, 3, bias=False)
    nn.init.eye_(layer.weight)
    bounds = dplip.parameter_bounds(nn.Sequential(layer, layer), (3,), Norms((3,), l2=1.0))
    assert list(bounds) == ["0.weight"]
    assert 2.0 <= bounds["0.weight"] <= 2.0001


def test_dropout_scales_in_training_only() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.75))
    with torch.no_grad():
        nn.init.eye_(model[0].weight)
        model[0].bias.zero_()
    walk = Walk(model, (4,))
    for train, expected in ((True, 4.0), (False, 1.0), (True, 4.0)):
        model.train(train)
        assert walk.current() == train
        output, pullback = dplip.propagate(model, (4,), Norms((4,), l2=1.0))
        assert expected <= output.l2 <= expected * 1.0001
        assert expected <= pullback(Norms((4,), l2=1.0))[0].l2 <= expected * 1.0001


class Switch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 5 * x if self.training else x


def test_each_mode_is_traced_for_itself() -> None:
    model = Switch()
    assert dplip.propagate(model.train(), (4,), Norms((4,), l2=1.0))[0].l2 == 5.0
    assert dplip.propagate(model.eval(), (4,), Norms((4,), l2=1.0))[0].l2 == 1.0


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = 2.0
        self.linear = nn.Linear(4, 4)
        self.register_buffer("gain", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x * self.factor) * (2 * self.gain)


def changed_factor(model: Scaled) -> None:
    model.factor = 20.0


def changed_hook(model: Scaled) -> None:
    model.linear.register_forward_hook(lambda *_: None)


def changed_gradient_hook(model: Scaled) -> None:
    model.linear.weight.register_hook(lambda g: 10 * g)


def changed_forward(model: Scaled) -> None:
    model.linear.forward = lambda x: 5 * x


def changed_layer(model: Scaled) -> None:
    model.linear = nn.Linear(4, 4)


def changed_class(model: Scaled) -> None:
    class Other(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 9 * super().forward(x)

    model.linear.__class__ = Other


def changed_freezing(model: Scaled) -> None:
    model.linear.weight.requires_grad_(False)


CHANGES = [
    *(changed_factor, changed_hook, changed_gradient_hook, changed_forward, changed_layer, changed_class),
    changed_freezing,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_trace_is_not_current_once_the_model_has_changed(change: Callable[[Scaled], None]) -> None:
    """Either the walk knows that it must be made anew, or it refuses what was added."""
    model = Scaled()
    walk = Walk(model, (4,))
    assert walk.current()
    change(model)
    try:
        assert not walk.current()
    except UnboundedOperationError:
        return


def test_a_walk_reads_the_weights_and_buffers_that_are_there() -> None:
    model = Scaled()
    walk = Walk(model, (4,))
    before = walk(Norms((4,), l2=1.0))[0].l2
    with torch.no_grad():
        model.gain.mul_(3)
    assert walk.current()
    assert walk(Norms((4,), l2=1.0))[0].l2 >= 2.99 * before
    model.gain = torch.full((4,), 6.0)
    with torch.no_grad():
        model.linear.weight.mul_(2)
        model.linear.bias.mul_(2)
    assert walk(Norms((4,), l2=1.0))[0].l2 >= 11.9 * before


def test_walking_leaves_the_model_and_the_random_states_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.LayerNorm(4, elementwise_affine=False)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    dplip.propagate(model, (4,))
    drawn = torch.rand(()), random.random(), np.random.rand()
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    assert drawn == (torch.rand(()), random.random(), np.random.rand())
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


# ------------------------------------------------------------------------------------------------ refusals


def refused(model: nn.Module, shape: tuple[int, ...]) -> str:
    """The message of a refusal: it names a path, says what was found and why, and ends with what to do."""
    with pytest.raises(UnboundedOperationError) as caught:
        output, pullback = dplip.propagate(model, shape, Norms(shape, l2=1.0))
        pullback(Norms(output.shape, l2=1.0))
    message = str(caught.value)
    path, _, rest = message.partition(": ")
    assert path and rest, message
    assert message.endswith((".", ").")), message
    assert len(rest.split()) >= 6, message
    return message


class Amplified(torch.autograd.Function):
    """A forward that a trace sees through, and a backward that it cannot see, as in gradient reversal."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return 100 * gradient


class Lurking(torch.autograd.Function):
    """A backward that is right for every input that a probe would draw."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        return gradient * torch.where(ctx.saved_tensors[0].abs() > 50, 100.0, 1.0)


def half_precision(x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return F.linear(x, torch.eye(4))


def in_place_sum(x: Tensor) -> Tensor:
    x += F.relu(x)
    return x


def in_place_product(x: Tensor) -> Tensor:
    x *= 2
    return x


def in_place_row(x: Tensor) -> Tensor:
    x[:, 0] = 0
    return x


def unpacked(x: Tensor) -> Tensor:
    a, b = x
    return a + b


def looped(x: Tensor) -> Tensor:
    return torch.stack([2 * row for row in x])


def branch(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


OPERATIONS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    # examples mix
    "x - mean over the batch": (lambda x: x - x.mean(0), "mean"),
    "x - mean kept": (lambda x: x - x.mean(0, keepdim=True), "mean"),
    "mean of all": (lambda x: x - x.mean(), "mean"),
    "sum of all": (lambda x: x / (1 + x.sum()), "sum"),
    "max over the batch": (lambda x: x - torch.amax(x, dim=0), "amax"),
    "softmax over the batch": (lambda x: F.softmax(x, dim=0), "dim=0"),
    "softmax over the batch, method": (lambda x: x.softmax(-2), "dim=-2"),
    "sort over the batch": (lambda x: x.sort(dim=0).values, "sort"),
    "view across the batch": (lambda x: x.view(-1, 2), "view"),
    "flatten of all": (lambda x: x.flatten(), "flatten"),
    "transpose": (lambda x: x.t(), "t "),
    "transpose by axes": (lambda x: x.transpose(0, 1), "transpose"),
    "permute": (lambda x: x.permute(1, 0), "permute"),
    "repeated examples": (lambda x: x[[0, 0]], "getitem"),
    "examples by an index": (lambda x: x[torch.tensor([1, 0])], "getitem"),
    "first example": (lambda x: x + x[:1], "getitem"),
    "first example alone": (lambda x: x[0], "getitem"),
    "first examples through an ellipsis": (lambda x: x[..., :8, :], "getitem"),
    "last examples through an ellipsis": (lambda x: x[..., 0:9, :4], "getitem"),
    "flip": (lambda x: x.flip(0), "mix"),
    "roll": (lambda x: x.roll(1, 0), "roll"),
    "shift by padding": (lambda x: F.pad(x, (0, 0, 1, -1)), "pad"),
    "cumsum": (lambda x: x.cumsum(0), "cumsum"),
    "joined batches": (lambda x: torch.cat((x, x)), "cat"),
    "split batch": (lambda x: x.chunk(2)[0], "chunk"),
    "loop over the batch": (looped, "forward"),
    "pairwise": (lambda x: x.unsqueeze(0) - x.unsqueeze(1), "unsqueeze"),
    "distance": (lambda x: torch.cdist(x, x), "cdist"),
    # products of values
    "square": (lambda x: x * x, "product|multiplies"),
    "power": (lambda x: x**2, "pow"),
    "gate": (lambda x: x * torch.sigmoid(x), "multiplies"),
    "quotient": (lambda x: x / (1 + x.abs()), "divides"),
    "matmul": (lambda x: x.unsqueeze(1) @ x.unsqueeze(2), "matmul"),
    "matmul from the left": (lambda x: torch.ones(5, 4) @ x.unsqueeze(-1), "matmul"),
    "matmul by a batch of matrices": (lambda x: x.unsqueeze(1).unsqueeze(1) @ torch.ones(3, 4, 2), "matmul"),
    "bmm": (lambda x: torch.bmm(x.unsqueeze(1), x.unsqueeze(2)), "bmm"),
    "einsum": (lambda x: torch.einsum("bi,bj->bij", x, x), "einsum"),
    "linear of itself": (lambda x: F.linear(x, x), "linear"),
    "normalize": (lambda x: F.normalize(x), "normalize"),
    "norm": (lambda x: x / x.norm(dim=1, keepdim=True), "norm"),
    "exp": (lambda x: x.exp(), "exp"),
    "sqrt": (lambda x: torch.sqrt(x), "sqrt"),
    "reciprocal": (lambda x: torch.reciprocal(x), "reciprocal"),
    "log": (lambda x: torch.log(x.abs() + 1), "log"),
    # jumps and data
    "where": (lambda x: torch.where(x > 0, x, 0 * x), "gt"),
    "sign": (lambda x: x.sign(), "sign"),
    "round": (lambda x: x.round(), "round"),
    "comparison": (lambda x: x * (x > 0), "gt"),
    "clamp to tensors": (lambda x: x.clamp(torch.zeros(4), torch.ones(4)), "clamp"),
    "bits": (lambda x: x.view(torch.int32).float(), "view"),
    "item": (lambda x: x * x[0, 0].item(), "item|getitem"),
    "branch": (branch, "control flow"),
    "argument of a branch": (lambda x: max(x, 0 * x), "control flow"),
    "detach": (lambda x: x + x.detach(), "detach"),
    "data": (lambda x: x.data, "getattr|data"),
    "autograd function": (Amplified.apply, "backward|gradient"),
    "autograd function, named late": (lambda x: Amplified.apply(x), "backward|gradient"),
    "autograd function that lies of large inputs": (lambda x: Lurking.apply(x), "backward|gradient"),
    "autocast": (half_precision, "forward"),
    # random
    "randn": (lambda x: x + torch.randn(4), "random"),
    "rand": (lambda x: x * torch.rand(()), "random"),
    "randn_like": (lambda x: x + torch.randn_like(x), "randn_like"),
    "rand of a shape": (lambda x: x + torch.rand(x.shape), "rand"),
    "bernoulli": (lambda x: x * torch.bernoulli(torch.full((4,), 0.5)), "random"),
    "numpy": (lambda x: x * float(np.random.rand()), "random"),
    "python": (lambda x: x * random.random(), "random"),
    "an own generator": (lambda x: x * torch.rand((), generator=SOURCE), "other results|random"),
    # in place
    "x += y": (in_place_sum, "in place"),
    "x *= 2": (in_place_product, "in place"),
    "x[:, 0] = 0": (in_place_row, "in place"),
    "add_": (lambda x: x.add_(1), "in place"),
    "relu_": (lambda x: torch.relu_(x), "in place"),
    "F.relu inplace": (lambda x: F.relu(x, inplace=True), "in place"),
    "F.relu inplace by position": (lambda x: F.relu(x, True), "in place"),
    # the size of the batch
    "times the batch size": (lambda x: x * x.size(0), "batch"),
    "over the batch size": (lambda x: x / x.shape[0], "batch"),
    "plus the batch size": (lambda x: x + x.size(0), "batch"),
    "by entries of the batch": (lambda x: x * x.numel(), "batch"),
    "length": (lambda x: x * len(x), "len|traced"),
    "int": (lambda x: x * int(x.size(0)), "int|traced"),
    "large batches": (lambda x: x * (1 + x.size(0) // 4), "batch"),
    "other batches than 2 and 3": (lambda x: x * (1 + (x.size(0) - 2) * (x.size(0) - 3)), "batch"),
    "a column by the batch size": (lambda x: x[:, x.size(0) - 2 : x.size(0) - 1], "batch"),
    "narrow by the batch size": (lambda x: x.narrow(1, x.size(0) - 2, 1), "batch"),
    "clamp by the batch size": (lambda x: x.clamp(0, x.size(0)), "batch"),
    "slope by the batch size": (lambda x: F.leaky_relu(x, x.size(0)), "batch"),
    "zeros of the batch": (lambda x: x + torch.zeros(x.size(0), 4), "zeros"),
    # reductions without an axis of the example
    "squeeze": (lambda x: x.squeeze(), "squeeze"),
    "no axis": (lambda x: x.sum(dim=()), "sum"),
}
SOURCE = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_without_a_bound_is_refused(name: str) -> None:
    function, said = OPERATIONS[name]
    message = refused(nn.Sequential(nn.Identity(), Calls(function)), (4,))
    assert any(part in message for part in said.split("|")), message


@pytest.mark.parametrize("function", [unpacked, lambda x: torch.add(x, x, out=torch.empty(3, 4))])
@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
def test_what_does_not_even_run_on_every_batch_is_refused(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(DPLipError):
        dplip.propagate(Calls(function), (4,))


def test_a_permutation_by_the_batch_size_is_refused() -> None:
    refused(Calls(lambda x: x.permute(0, x.size(0) - 1, 4 - x.size(0))), (3, 3))


class Scale(nn.Module):
    def __init__(self, use: Callable[[nn.Parameter, Tensor], Tensor]) -> None:
        super().__init__()
        self.w, self.use = nn.Parameter(torch.randn(4)), use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self.w, x)


@pytest.mark.parametrize(
    "use",
    [
        lambda w, x: x * (w * 2),
        lambda w, x: x * w.abs(),
        lambda w, x: x + F.softplus(w),
        lambda w, x: x * torch.exp(w),
        lambda w, x: x + w[:1],
        lambda w, x: x * (w + w),
        lambda w, x: w / (1 + x),
        lambda w, x: x / w,
        lambda w, x: torch.where(w > 0, x, -x),
    ],
)
def test_a_parameter_meets_an_example_as_it_is(use: Callable[[nn.Parameter, Tensor], Tensor]) -> None:
    refused(Scale(use), (4,))


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
        self.last = 0.0

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
        self.calls += 1
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
    def __getattr__(self, name: str) -> object:
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
    layer.forward = lambda x: 5 * x
    return layer


def patched_inside() -> nn.Module:
    layer = nn.Conv2d(2, 2, 3)
    layer._conv_forward = lambda x, weight, bias: 5 * x
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
    "in place by another name": (lambda: nn.Sequential(nn.Hardswish(inplace=1)), VECTOR, "in place"),
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
    assert float(model.calls) == 0.0


@contextmanager
def registered(register: Callable[[Callable[..., object]], object], hook: Callable[..., object]) -> Iterator[None]:
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
def test_a_global_hook_is_refused(register: Callable[[Callable[..., object]], object]) -> None:
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
        return self.use(x, self.constant)


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


def test_batch_normalisation_is_an_affine_map_in_evaluation_mode_and_keeps_no_count_when_refused() -> None:
    layer = nn.BatchNorm1d(4).requires_grad_(False).eval()
    layer.running_var.fill_(0.25)
    layer.running_mean.fill_(3.0)
    assert dplip.lipschitz(layer, (4,)) == pytest.approx(2.0, rel=1e-3)
    assert "mixes the examples" in refused(layer.train(), (4,))
    assert float(layer.running_mean[0]) == 3.0 and int(layer.num_batches_tracked) == 0
    assert "mixes the examples" in refused(nn.BatchNorm1d(4, track_running_stats=False).eval(), (4,))
    with pytest.raises(UnboundedOperationError, match="'weight'"):
        dplip.sensitivity(
            nn.Sequential(dn.BallProjection(1.0), nn.BatchNorm1d(4).eval()), dplip.losses.CrossEntropy(), (4,)
        )


def test_walking_puts_back_every_weight_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4).requires_grad_(False)).eval()
    places = {k: (v.data_ptr(), v._version, v.clone()) for k, v in model.state_dict(keep_vars=True).items()}
    dplip.propagate(model, (4,))
    for k, v in model.state_dict(keep_vars=True).items():
        place, version, values = places[k]
        assert (v.data_ptr(), v._version) == (place, version) and torch.equal(v, values)


def test_a_jump_hidden_in_a_leaf_is_found_by_its_class() -> None:
    """ZeroPad2d and ConstantPad2d share one forward; the rule of the first says nothing about the second."""
    padded, _ = dplip.propagate(nn.ZeroPad2d(1), (1, 3, 3), Norms((1, 3, 3), l2=1.0))
    assert padded.l2 == 1.0
    refused(nn.ConstantPad2d(1, 0.5), (1, 3, 3))


# ------------------------------------------------------------------------------------------------ sensitivity


def ball(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(dn.BallProjection(1.0), *layers)


def test_an_unused_parameter_is_refused_by_sensitivity() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ball, self.used, self.spare = dn.BallProjection(1.0), nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.spare(x)  # walked, but its result goes nowhere
            return self.used(self.ball(x))

    model = Unused()
    with pytest.raises(UnboundedOperationError, match=r"spare\.weight"):
        dplip.sensitivity(model, dplip.losses.CrossEntropy(), (4,))
    model.spare.requires_grad_(False)
    model.register_parameter("extra", nn.Parameter(torch.zeros(3)))
    with pytest.raises(UnboundedOperationError, match="extra"):
        dplip.sensitivity(model, dplip.losses.CrossEntropy(), (4,))
    model.extra.requires_grad_(False)
    assert list(dplip.sensitivity(model, dplip.losses.CrossEntropy(), (4,))) == ["used.weight", "used.bias"]


def test_an_unbounded_input_names_the_first_layer() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(UnboundedInputError, match=r"^1: the gradient of '1\.weight'.*BallProjection"):
        dplip.sensitivity(model, dplip.losses.CrossEntropy(), (4,))
    with pytest.raises(UnboundedInputError, match=r"^1: the gradient of '1\.weight'.*BallProjection"):
        dplip.parameter_bounds(model, (4,), None)
    assert dplip.sensitivity(model, dplip.losses.CrossEntropy(), (4,), Norms((4,), l2=1.0)).total > 0
    late = nn.Sequential(nn.Linear(4, 4), dn.BallProjection(1.0), nn.Linear(4, 2))
    with pytest.raises(UnboundedInputError, match=r"^0: "):
        dplip.sensitivity(late, dplip.losses.CrossEntropy(), (4,))
    late[0].weight.requires_grad_(False)
    assert set(dplip.sensitivity(late, dplip.losses.CrossEntropy(), (4,))) == {"0.bias", "2.weight", "2.bias"}


def test_layers_with_bounded_outputs_bound_the_input() -> None:
    for layer in (dn.BallProjection(1.0), dn.Clamp(-1.0, 1.0), nn.Tanh(), nn.Softmax(1)):
        bounds = dplip.sensitivity(nn.Sequential(layer, nn.Linear(4, 2)), dplip.losses.CrossEntropy(), (4,))
        assert 0 < bounds["1.weight"] < 3


def test_sensitivity_bounds_the_gradient_of_the_loss() -> None:
    torch.manual_seed(0)
    model = ball(nn.Linear(4, 6), dn.GroupSort(2), nn.Linear(6, 3))
    loss = dplip.losses.CrossEntropy(temperature=50.0)
    bounds = dplip.sensitivity(model, loss, (4,))
    worst_ratio = dict.fromkeys(bounds, 0.0)
    for x in torch.cat((torch.eye(4), torch.randn(60, 4))) * 100:
        for y in range(3):
            model.zero_grad()
            loss(model(x[None]), torch.tensor([y])).backward()
            for name, p in model.named_parameters():
                worst_ratio[name] = max(worst_ratio[name], float(p.grad.norm()) / bounds[name])
    assert all(0.3 < ratio <= 1 for ratio in worst_ratio.values()), worst_ratio
    assert 0.9 < worst_ratio["3.bias"]


def test_walks_refuse_norms_of_another_shape() -> None:
    walk = Walk(nn.Linear(4, 2), (4,))
    with pytest.raises(dplip.ConfigurationError, match="input_norms"):
        walk(Norms((3,), l2=1.0))
    with pytest.raises(dplip.ConfigurationError, match="cotangent"):
        walk(Norms((4,), l2=1.0))[1](Norms((3,), l2=1.0))
    with pytest.raises(dplip.ConfigurationError, match="input_shape"):
        Walk(nn.Linear(4, 2), (5,))


def test_a_rule_that_gets_a_shape_wrong_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from dplip.rules import registry

    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :2]

    monkeypatch.setattr(registry, "_RULES", registry.registered())

    @dplip.rule(Half)
    def half(module: Half, x: Norms) -> tuple[Norms, object]:
        return x, lambda v: ((v,), {})

    with pytest.raises(DPLipError, match="shape"):
        dplip.propagate(Half(), (4,))


def test_a_rule_for_a_layer_that_mixes_examples_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from dplip.rules import registry

    class Relative(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0)

    monkeypatch.setattr(registry, "_RULES", registry.registered())

    @dplip.rule(Relative)
    def relative(module: Relative, x: Norms) -> tuple[Norms, object]:
        return x, lambda v: ((v,), {})

    with pytest.raises(UnboundedOperationError, match="depend on another"):
        dplip.propagate(nn.Sequential(nn.Linear(3, 3), Relative()), (3,))


def test_a_rule_that_forgets_a_parameter_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from dplip.rules import registry

    class Gain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.gain

    monkeypatch.setattr(registry, "_RULES", registry.registered())

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
