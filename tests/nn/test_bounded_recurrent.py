"""Recurrent layers that bound their gradients: torch's outputs and gradients, exact norms, and one use a sequence."""

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from helpers.clipped import clipped_sum, gradients, require_clipped
from helpers.half import HALF, half
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import dplip.nn as dn
from dplip.errors import ConfigurationError, MixedExamplesError
from dplip.nn.bounded.enforcing import is_enforcing
from dplip.separation import Watch

B, T, D, H = 4, 6, 3, 5
LENGTHS = torch.tensor([4, 6, 1, 3])

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "RNN": (nn.RNN, {}),
    "RNN with relu, two layers": (nn.RNN, {"nonlinearity": "relu", "num_layers": 2, "bidirectional": True}),
    "GRU": (nn.GRU, {}),
    "GRU without bias": (nn.GRU, {"bias": False, "num_layers": 2}),
    "GRU both ways": (nn.GRU, {"bidirectional": True, "num_layers": 2}),
    "LSTM": (nn.LSTM, {}),
    "LSTM without bias": (nn.LSTM, {"bias": False, "bidirectional": True}),
    "LSTM, two layers": (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
    "LSTM with projection": (nn.LSTM, {"proj_size": 2, "num_layers": 2, "bidirectional": True}),
}
EACH = pytest.mark.parametrize("name", KINDS)
ONE = pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM", "LSTM with projection"])
CELLS = pytest.mark.parametrize("cell", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def layer(name: str, dtype: torch.dtype = torch.float64, **options: Any) -> nn.RNNBase:
    kind, settings = KINDS[name]
    made: nn.RNNBase = kind(D, H, **{"batch_first": True, **settings, **options}, dtype=dtype)
    for i, p in enumerate(made.parameters()):
        p.data = random(*p.shape, seed=50 + i, dtype=dtype)
    return made


def states(module: nn.RNNBase, given: bool) -> Any:
    """First states, or none."""
    if not given:
        return None
    count = module.num_layers * (1 + module.bidirectional)
    first = [random(count, B, n, seed=n) for n in (module.proj_size or H, H)[: 1 + isinstance(module, nn.LSTM)]]
    return tuple(first) if len(first) == 2 else first[0]


def flat(*values: Any) -> Tensor:
    """All numbers of an output and the last states."""
    tensors: list[Tensor] = []
    for value in values:
        tensors += [value.data] if isinstance(value, PackedSequence) else value if isinstance(value, tuple) else [value]
    return torch.cat([t.reshape(-1) for t in tensors])


def require_same(stock: nn.RNNBase, bounded: nn.RNNBase, x: Tensor, one: Any, other: Any) -> None:
    """Outputs, last states and gradients are the same."""
    y, z = flat(*one), flat(*other)
    torch.testing.assert_close(z, y)
    v = random(len(y), seed=8)
    own = torch.autograd.grad(y, [x, *stock.parameters()], v, retain_graph=True)
    for a, b in zip(torch.autograd.grad(z, [x, *bounded.parameters()], v, retain_graph=True), own, strict=True):
        torch.testing.assert_close(a, b)


class Output(nn.Module):
    """A layer's output and last states in one tensor (examples, numbers)."""

    def __init__(self, module: nn.RNNBase) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        y, last = self.module(x)
        ends = last if isinstance(last, tuple) else (last,)
        return torch.cat([y.flatten(1), *(s.transpose(0, 1).flatten(1) for s in ends)], 1)


@EACH
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_outputs_and_inactive_gradients_are_torch_s(name, given, first):
    stock = layer(name, batch_first=first)
    bounded = dn.bound_gradients(copy.deepcopy(stock), 1e9)
    assert type(bounded).__name__ == "Bounded" + type(stock).__name__
    assert list(bounded.state_dict()) == list(stock.state_dict())
    x = (random(B, T, D) if first else random(T, B, D)).requires_grad_()
    hx = states(stock, given)
    require_same(stock, bounded, x, stock(x, hx), bounded(x, hx))
    assert torch.equal(flat(*stock.eval()(x, hx)), flat(*bounded.eval()(x, hx)))


@EACH
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("is_sorted", [False, True])
def test_packed_sequences_and_lengths_are_torch_s_packed_sequences(name, given, first, is_sorted):
    lengths = LENGTHS.sort(descending=True).values if is_sorted else LENGTHS
    stock = layer(name, batch_first=first)
    bounded = dn.bound_gradients(copy.deepcopy(stock), 1e9)
    x = (random(B, T, D) if first else random(T, B, D)).requires_grad_()
    hx = states(stock, given)
    packed = pack_padded_sequence(x, lengths, first, enforce_sorted=is_sorted)
    y, last = stock(packed, hx)
    z, ends = bounded(packed, hx)
    for a, b in zip(y[1:], z[1:], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    require_same(stock, bounded, x, (y, last), (z, ends))
    require_same(
        stock, bounded, x, (pad_packed_sequence(stock(packed, hx)[0], first)[0], last), bounded(x, hx, lengths)
    )
    z, ends = bounded.eval()(x, hx, lengths=lengths)
    torch.testing.assert_close(flat(z, ends), flat(pad_packed_sequence(y, first)[0], last))


@EACH
@pytest.mark.parametrize("size", [1e-3, 1.0, 100.0])
def test_each_example_s_gradient_is_scaled_into_the_radius_and_reaches_it(name, size):
    require_clipped(Output(layer(name)), random(B, T, D), radius=0.7, size=size)


@ONE
def test_each_example_is_scaled_by_the_gradient_of_its_own_length(name):
    stock, radius = layer(name), 0.7
    bounded = dn.bound_gradients(copy.deepcopy(stock), radius)
    x = random(B, T, D)
    y, _ = bounded(x, lengths=LENGTHS)
    v = 10 * random(*y.shape, seed=1)
    got = torch.autograd.grad(y, list(bounded.parameters()), v)
    wanted = [torch.zeros_like(p) for p in stock.parameters()]
    for i, n in enumerate(LENGTHS.tolist()):
        for sums, g in zip(
            wanted,
            torch.autograd.grad(stock(x[i : i + 1, :n])[0], list(stock.parameters()), v[i : i + 1, :n]),
            strict=True,
        ):
            sums += g * min(1.0, radius / max(float(g.norm()), 1e-300))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@EACH
def test_what_lies_beyond_a_sequence_is_not_read(name):
    bounded = dn.bound_gradients(layer(name), 0.7)
    x, parameters = random(B, T, D), list(bounded.parameters())
    beyond = torch.arange(T)[None] >= LENGTHS[:, None]
    found = []
    for filling in (0.0, math.nan, 1e300):
        given = x.masked_fill(beyond[..., None], filling).requires_grad_()
        y, last = bounded(given, lengths=LENGTHS)
        assert not y[beyond].any()
        v = torch.where(beyond[..., None], filling, random(*y.shape, seed=1))
        ends = flat(last)
        found.append(torch.autograd.grad((y, ends), [given, *parameters], (v, random(len(ends), seed=2))))
        assert not found[-1][0][beyond].any()
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


@EACH
def test_no_magnitude_takes_an_example_beyond_the_radius(name):
    sizes = [0.0, 1e-45, 1e-30, 1.0, 1e15, 1e30, 3e38, math.inf, math.nan]
    for scale in (1e-30, 1.0, 30.0):
        bounded = dn.bound_gradients(Output(layer(name, torch.float32)), 0.7)
        for p in bounded.parameters():
            p.data *= scale
        x = random(1, T, D, dtype=torch.float32)
        for a, b in itertools.product(sizes, sizes):
            y = bounded(a * x)
            for g in torch.autograd.grad(y, list(bounded.parameters()), b * random(*y.shape, dtype=torch.float32)):
                assert float(g.double().norm()) <= 0.7


@ONE
def test_a_search_finds_no_example_beyond_the_radius_and_reaches_it(name):
    """Ascent on the norm before the scale, over input, first states, weights and cotangent, with lengths at random."""
    stock = layer(name, torch.float32)
    best = 0.0
    for seed in range(8):
        x = random(1, T, D, seed=seed, dtype=torch.float32).requires_grad_()
        v = random(1, T, stock.proj_size or H, seed=seed + 20, dtype=torch.float32)
        v = v.repeat(1, 1, 1 + stock.bidirectional)
        lengths = LENGTHS[seed % B][None]
        for _ in range(5):
            y = dn.bound_gradients(copy.deepcopy(stock), 1e9)(x, lengths=lengths)[0]
            (slope,) = torch.autograd.grad(y, x, v)
            x = (x + slope / slope.norm().clamp_min(1e-20)).detach().requires_grad_()
            v = v + y.detach()
        bounded = dn.bound_gradients(copy.deepcopy(stock), 0.7)
        y = bounded(x, lengths=lengths)[0]
        for g in torch.autograd.grad(y, list(bounded.parameters()), 100 * v):
            assert float(g.double().norm()) <= 0.7 * (1 + 1e-5)
            best = max(best, float(g.double().norm()))
    assert best >= 0.99 * 0.7


@EACH
def test_an_example_moves_the_sum_by_its_own_gradient_alone(name):
    bounded = dn.bound_gradients(Output(layer(name, torch.float32)), 0.7)
    x = random(40, T, D, dtype=torch.float32)
    v = random(*bounded(x).shape, dtype=torch.float32) * torch.logspace(-6, 6, 40)[:, None]
    for bad in (1.0, 1e20, math.nan, math.inf):
        odd = torch.cat([x[:1] * bad, x[1:]])
        whole, rest = gradients(bounded, (odd,), v), gradients(bounded, (x[1:],), v[1:])
        for a, b in zip(whole, rest, strict=True):
            assert float((a.double() - b.double()).norm()) <= 0.7 * (1 + 1e-4)


@EACH
def test_parts_of_a_batch_are_summed_as_its_whole(name, monkeypatch):
    """Gradients of single examples are formed a few at a time where they are large."""
    layers = [dn.bound_gradients(Output(layer(name)), 0.7) for _ in range(2)]
    x = random(9, T, D)
    v = random(*layers[0](x).shape)
    whole = gradients(layers[0], (x,), v)
    monkeypatch.setattr("dplip.nn.sums.HELD", 150)
    for a, b in zip(gradients(layers[1], (x,), v), whole, strict=True):
        torch.testing.assert_close(a, b)


@EACH
@pytest.mark.parametrize("steps", [1, T, 50])
def test_a_sequence_is_one_use_of_each_weight(name, steps):
    bounded = dn.bound_gradients(layer(name), 0.7)
    y, _ = bounded(random(B, steps, D))
    left, found = [y.grad_fn], set()
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found.add(node)
            left += [following for following, _ in node.next_functions]
    enforcing = [node for node in found if is_enforcing(node)]
    assert len(enforcing) == bounded.num_layers * (1 + bounded.bidirectional)
    senders: dict[str, int] = {}
    for node in found:
        given = type(node)._forward_cls.given if node in enforcing else 0
        for position, (following, _) in enumerate(node.next_functions):
            for key, p in bounded.named_parameters():
                if getattr(following, "variable", None) is p:
                    assert node in enforcing and position >= given and node.radius == 0.7 and node.terms <= steps
                    senders[key] = senders.get(key, 0) + 1
    assert senders == dict.fromkeys(bounded.state_dict(), 1)


@ONE
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("windows", [1, 2])
def test_a_watch_says_which_sequences_are_one_example_s(name, first, windows):
    bounded = dn.bound_gradients(layer(name, batch_first=first, bidirectional=True, num_layers=2), 0.7)
    x, lengths = random(B, windows, T, D), LENGTHS[:, None].expand(B, windows).contiguous()
    with Watch([x, lengths], B) as watch:
        given = x.flatten(0, 1) if first else x.flatten(0, 1).transpose(0, 1)
        y, last = bounded(given, None, lengths.flatten())
        z, _ = bounded(given)
        state = last[0] if isinstance(last, tuple) else last
        assert watch.rows(y).axis == (0 if first else 1) and watch.rows(state).axis == 1
    for out in (y, z):
        v = 100 * random(*out.shape, seed=5)
        for i in range(B):
            only = torch.zeros_like(v)
            rows = slice(i * windows, (i + 1) * windows)
            index = rows if first else (slice(None), rows)
            only[index] = v[index]
            for g in torch.autograd.grad(out, list(bounded.parameters()), only, retain_graph=True):
                assert float(g.norm()) <= 0.7 * (1 + 1e-5) and (i == 2 or g.any())  # the third has one step


@ONE
def test_examples_along_another_axis_are_refused_under_a_watch(name):
    bounded, x = dn.bound_gradients(layer(name, batch_first=False)), random(B, T, D)
    with pytest.raises(MixedExamplesError), Watch([x], B):
        bounded(x)
    with pytest.raises(MixedExamplesError, match="batch_first"), Watch([x], B):
        bounded(x.transpose(0, 1).unsqueeze(1).expand(-1, 2, -1, -1).flatten(1, 2))


@CELLS
@pytest.mark.parametrize("options", [{}, {"bias": False}])
def test_cells_compute_what_torch_s_do_and_scale_each_example(cell, options):
    stock = cell(D, H, **options).double()
    bounded = dn.bound_gradients(copy.deepcopy(stock), 1e9)
    assert type(bounded).__name__ == "Bounded" + cell.__name__
    x = random(B, D).requires_grad_()
    hx: Any = random(B, H, seed=1)
    hx = (hx, random(B, H, seed=2)) if cell is nn.LSTMCell else hx
    for given in (None, hx):
        require_same(stock, bounded, x, (stock(x, given),), (bounded(x, given),))
    assert torch.equal(flat(stock.eval()(x, hx)), flat(bounded.eval()(x, hx)))
    stock.train()
    if cell is not nn.LSTMCell:
        for size in (1e-3, 1.0, 100.0):
            require_clipped(stock, x.detach(), hx, radius=0.7, size=size)
    bounded.train().radius = 0.7
    for g in torch.autograd.grad(flat(bounded(x[:1])).sum() * 1e3, list(bounded.parameters())):
        assert float(g.norm()) <= 0.7
    with pytest.raises(ConfigurationError, match=r"x\[None\]"):
        bounded(x[0])
    with Watch([x], B):
        y = bounded(x, bounded(x))
    assert len(flat(y)) == B * H * (1 + (cell is nn.LSTMCell))


def test_a_relu_cell_is_one():
    stock = nn.RNNCell(D, H, nonlinearity="relu").double()
    x = random(B, D)
    torch.testing.assert_close(dn.bound_gradients(copy.deepcopy(stock))(x), stock(x))


@ONE
@pytest.mark.parametrize("examples, steps", [(0, 3), (1, 1), (3, 1)])
def test_batches_of_none_and_single_steps(name, examples, steps):
    bounded = dn.bound_gradients(layer(name))
    for lengths in (None, torch.full((examples,), 1)):
        y, last = bounded(random(examples, steps, D), lengths=lengths)
        for g in torch.autograd.grad(flat(y, last).sum(), list(bounded.parameters())):
            assert torch.isfinite(g).all() and (examples or not g.any())


@EACH
def test_a_sequence_of_no_steps_keeps_its_state_and_adds_nothing(name):
    bounded = dn.bound_gradients(layer(name))
    hx = states(bounded, True)
    y, last = bounded(random(B, T, D), hx, torch.zeros(B, dtype=torch.int64))
    assert not y.any()
    if bounded.num_layers == 1:
        assert torch.equal(flat(last), flat(hx))
    assert all(not g.any() for g in torch.autograd.grad(flat(y, last).sum(), list(bounded.parameters())))


@ONE
def test_frozen_weights_get_no_gradient(name):
    for frozen in layer(name).state_dict():
        bounded = dn.bound_gradients(layer(name))
        bounded.get_parameter(frozen).requires_grad_(False)
        flat(*bounded(random(B, T, D))).sum().backward()
        assert [n for n, p in bounded.named_parameters() if p.grad is None] == [frozen]


@HALF
@ONE
def test_gradients_under_autocast_are_in_the_parameters_type(name, dtype):
    bounded = dn.bound_gradients(layer(name, torch.float32), 0.7)
    x = random(1, T, D, dtype=torch.float32)
    with half(dtype):
        y, _ = bounded(x.to(dtype))
        wide = bounded(x.to(dtype).float())[0]
        assert y.dtype == torch.float32 and torch.equal(y, wide)
        for g in torch.autograd.grad(y, list(bounded.parameters()), 1e3 * torch.ones_like(y)):
            assert g.dtype == torch.float32 and 0.69 <= float(g.norm()) <= 0.7


def test_dropout_is_between_layers_in_training_alone():
    bounded = dn.bound_gradients(layer("LSTM, two layers", dropout=0.5))
    x = random(B, T, D)
    assert not torch.equal(bounded(x)[0], bounded(x)[0])
    bounded.eval()
    assert torch.equal(bounded(x)[0], bounded(x)[0])


def test_what_cannot_be_a_batch_of_sequences_is_refused():
    bounded, x = dn.bound_gradients(layer("LSTM")), random(B, T, D)
    for bad in (x[0], x[:, :0]):
        with pytest.raises(ConfigurationError, match="without an axis of examples or a step"):
            bounded(bad)
    for lengths in (LENGTHS[:2], LENGTHS.float()):
        with pytest.raises(ConfigurationError, match="one whole number for each"):
            bounded(x, lengths=lengths)
    with pytest.raises(ConfigurationError, match="radius"):
        dn.BoundedGRU(D, H, radius=0.0)


def test_a_reference_by_a_loop_has_something_to_clip():
    """The examples of the tests above lie on both sides of the radius."""
    stock, x = Output(layer("LSTM")), random(B, T, D)
    v = random(*stock(x).shape, seed=3)
    norms = [float(g.norm()) for i in range(B) for g in clipped_sum(stock, (x[i : i + 1],), v[i : i + 1], 1e9)]
    assert min(norms) < 0.7 * 100 and max(norms) > 0.7
