"""Operations without a bound are refused."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.refusals import refused
from helpers.sample import Calls
from torch import Tensor, nn

import dplip
from dplip import Norms
from dplip.errors import DPLipError


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
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
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


SOURCE = torch.Generator().manual_seed(0)
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
    "roll": (lambda x: x.roll(1, 0), "examples may mix"),
    "rot90": (lambda x: x[:, None].rot90(), "rot90"),
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


def test_a_jump_hidden_in_a_leaf_is_found_by_its_class() -> None:
    """ZeroPad2d and ConstantPad2d share one forward; the rule of the first says nothing about the second."""
    padded, _ = dplip.propagate(nn.ZeroPad2d(1), (1, 3, 3), Norms((1, 3, 3), l2=1.0))
    assert padded.l2 == 1.0
    refused(nn.ConstantPad2d(1, 0.5), (1, 3, 3))
