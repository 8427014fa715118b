"""A joint radius: all that one example adds lies within it, in the direction of its gradient, whatever happens."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dplip.errors import ConfigurationError
from dplip.nn import BoundedLinear, JointRadius, bound_gradients
from dplip.nn.bounded.joint import joint_radius, measured

ALLOWED = 1 + 1e-5


class Net(nn.Module):
    """Modules, and a function of them and the input; a Sequential would not pass a function's arguments on."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **modules: Any) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def convolutions() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3), nn.GroupNorm(3, 3), nn.PReLU(3), nn.ConvTranspose2d(3, 2, 2, 2)),
        *(nn.Flatten(), nn.Linear(128, 5), nn.Tanh(), nn.Linear(5, 4)),
    )


def positions() -> nn.Module:
    """Gram matrices, where the terms of one example do not cancel much, and formed gradients."""
    return nn.Sequential(
        nn.Linear(6, 40), nn.Tanh(), nn.LayerNorm(40), nn.Linear(40, 3), nn.Flatten(), nn.Linear(18, 4)
    )


def attention() -> nn.Module:
    return Net(
        lambda m, x: m.head((m.inner(h := m.words(x.long()) + m.places, h, h)[0] + h).mean(1)),
        words=nn.Embedding(9, 8),
        places=nn.Parameter(torch.randn(5, 8)),
        inner=nn.MultiheadAttention(8, 2, batch_first=True),
        head=nn.Linear(8, 4),
    )


def recurrent(kind: Any, **options: Any) -> Callable[[], nn.Module]:
    return lambda: Net(
        lambda m, x: m.head(m.inner(x)[0][:, -1]),
        inner=kind(4, 6, batch_first=True, **options),
        head=nn.Linear(options.get("proj_size", 6) * (2 if options.get("bidirectional") else 1), 4),
    )


def checkpointed() -> nn.Module:
    return Net(
        lambda m, x: m.head(checkpoint(m.inner, m.first(x), use_reentrant=False)),
        first=nn.Linear(6, 6),
        inner=nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6)),
        head=nn.Linear(6, 4),
    )


def ids(count: int) -> Tensor:
    return torch.randint(0, 9, (count, 5)).float()


def normal(*shape: int) -> Callable[[int], Tensor]:
    return lambda count: torch.randn(count, *shape)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "convolutions": (convolutions, normal(1, 6, 6)),
    "positions": (positions, normal(6, 6)),
    "attention": (attention, ids),
    "LSTM": (recurrent(nn.LSTM, proj_size=3, bias=False), normal(5, 4)),
    "LSTM with biases": (recurrent(nn.LSTM, proj_size=3, num_layers=2), normal(5, 4)),
    "GRU": (recurrent(nn.GRU, bidirectional=True), normal(5, 4)),
    "RNN": (recurrent(nn.RNN), normal(5, 4)),
    "checkpoints": (checkpointed, normal(6)),
}


def vector(model: nn.Module) -> Tensor:
    """All gradients as one vector, in float64."""
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([part.double().flatten() for part in parts])


def added(model: nn.Module, x: Tensor, v: Tensor) -> Tensor:
    """What a batch adds to the gradients."""
    model.zero_grad()
    measured(model, model(x)).backward(v)
    return vector(model)


def pair(make: Callable[[], nn.Module], radius: float, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """A stock model, and a copy with a joint radius."""
    torch.manual_seed(seed)
    stock = make()
    return stock, bound_gradients(copy.deepcopy(stock), JointRadius(radius))


@pytest.mark.parametrize("name", MODELS)
def test_no_example_adds_more_than_the_radius_and_each_keeps_its_direction(name: str) -> None:
    make, draw = MODELS[name]
    worst = 0.0
    for trial in range(24):
        radius = 10.0 ** (trial % 5 - 3)
        stock, joint = pair(make, radius, trial)
        with torch.no_grad():
            for p, q in zip(stock.parameters(), joint.parameters(), strict=True):
                p.mul_(10.0 ** (trial % 3 - 1))
                q.copy_(p)
        x = draw(1)
        x = x if name == "attention" else x * 10.0 ** (trial % 4 - 2)
        v = torch.randn(1, 4) * 10.0 ** (trial % 7 - 3)
        true, got = added(stock, x, v), added(joint, x, v)
        norm, size = float(true.norm()), float(got.norm())
        assert size <= radius * ALLOWED
        if norm > 1e-12:
            assert size >= 0.99 * min(norm, radius)
            assert float(torch.cosine_similarity(true, got, 0)) >= 1 - 1e-5
        worst = max(worst, size / radius)
    assert worst >= 0.99


@pytest.mark.parametrize("name", MODELS)
def test_within_a_large_radius_the_gradient_is_the_plain_one(name: str) -> None:
    make, draw = MODELS[name]
    stock, joint = pair(make, 1e6)
    x, v = draw(6), torch.randn(6, 4)
    torch.testing.assert_close(added(joint, x, v), added(stock, x, v), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["convolutions", "positions", "attention", "GRU"])
def test_a_batch_adds_what_its_examples_add_alone(name: str) -> None:
    make, draw = MODELS[name]
    _, joint = pair(make, 0.3)
    x, v = draw(5), torch.randn(5, 4)
    v[2] *= 100
    alone = [added(joint, x[i : i + 1], v[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(added(joint, x, v), sum(alone[1:], alone[0]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["convolutions", "positions", "RNN"])
def test_in_half_precision_no_example_adds_more_than_the_radius(name: str) -> None:
    make, draw = MODELS[name]
    worst = 0.0
    for trial in range(8):
        _, joint = pair(make, 0.1, trial)
        with torch.autocast("cpu", torch.bfloat16):
            output = joint(draw(1) * 10.0 ** (trial % 3 - 1))
        measured(joint, output.float()).backward(10 * torch.randn(1, 4))
        worst = max(worst, float(vector(joint).norm()) / 0.1)
    assert 0.99 <= worst <= ALLOWED


def test_an_ascent_of_input_and_cotangent_ends_at_the_radius() -> None:
    stock, joint = pair(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), 1.0)
    x: Any = torch.randn(1, 4, requires_grad=True)
    v: Any = torch.randn(1, 3, requires_grad=True)
    for step in range(40):
        found = torch.autograd.grad(stock(x), list(stock.parameters()), v, create_graph=True)
        sum(g.square().sum() for g in found).sqrt().backward()
        for t in (x, v):
            t.data += 0.2 * t.norm() * t.grad / t.grad.norm()
            t.grad = None
        assert float(added(joint, x.detach(), v.detach()).norm()) <= ALLOWED
        assert step < 20 or float(added(joint, x.detach(), v.detach()).norm()) >= 0.99


@pytest.mark.parametrize("factor", [1e3, -1.0, math.nan, 1e-3])
def test_whatever_changes_between_the_passes_the_radius_holds(factor: float) -> None:
    """A hook that lets the measuring pass see other cotangents than the one that brings gradients."""
    passes = 0

    def other(gradient: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        return gradient if passes % 2 else gradient * factor * torch.rand_like(gradient)

    def forward(m: Any, x: Tensor) -> Tensor:
        h = torch.tanh(m.first(x))
        h.register_hook(other)
        return m.second(h)

    _, joint = pair(lambda: Net(forward, first=nn.Linear(4, 6), second=nn.Linear(6, 3)), 0.5)
    worst = 0.0
    for trial in range(20):
        found = added(joint, 10.0 ** (trial % 5 - 2) * torch.randn(1, 4), 10.0 ** (trial % 4 - 1) * torch.randn(1, 3))
        worst = max(worst, float(found.norm()))
    assert passes == 40 and 0.1 <= worst <= 0.5 * ALLOWED


@pytest.mark.parametrize("count", [2, 5])
def test_the_uses_of_one_parameter_share_the_radius(count: int) -> None:
    """Aligned, their norms add up; the norm of all is then that of their sum."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return sum(m.inner(x) for _ in range(count)) + m.other(x)

    stock, joint = pair(lambda: Net(forward, inner=nn.Linear(4, 3), other=nn.Linear(4, 3, bias=False)), 0.5)
    x, v = torch.randn(1, 4), 10 * torch.randn(1, 3)
    true, got = added(stock, x, v), added(joint, x, v)
    assert 0.99 * 0.5 <= float(got.norm()) <= 0.5 * ALLOWED
    assert float(torch.cosine_similarity(true, got, 0)) >= 1 - 1e-6


def test_views_and_copies_of_a_parameter_are_uses_of_it() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return x @ m.weight.T + x @ m.weight.clone().mT + nn.functional.linear(x, m.weight[:2]).sum(1, keepdim=True)

    _, joint = pair(lambda: Net(forward, weight=nn.Parameter(torch.randn(3, 4))), 0.5)
    for _ in range(10):
        assert float(added(joint, torch.randn(1, 4), 10 * torch.ones(1, 3)).norm()) <= 0.5 * ALLOWED


@pytest.mark.parametrize("wrong", [math.nan, math.inf, 1e38])
def test_an_example_that_is_not_finite_adds_nothing_and_changes_no_other(wrong: float) -> None:
    _, joint = pair(convolutions, 0.5)
    x, v = torch.randn(4, 1, 6, 6), torch.randn(4, 4)
    rest = added(joint, x[1:], v[1:])
    v[0] = wrong
    torch.testing.assert_close(added(joint, x, v), rest, rtol=1e-5, atol=1e-6)


def test_several_outputs_are_measured_together() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        h = torch.tanh(m.trunk(x))
        return {"a": m.a(h), "b": (m.b(h), x)}

    make = lambda: Net(forward, trunk=nn.Linear(4, 6), a=nn.Linear(6, 2), b=nn.Linear(6, 3))  # noqa: E731
    stock, joint = pair(make, 0.5)
    x, found = torch.randn(1, 4), []
    for model in (stock, joint):
        out: Any = measured(model, model(x))
        (10 * out["a"].sum() + out["b"][0].square().sum()).backward()
        found.append(vector(model))
    assert 0.99 * 0.5 <= float(found[1].norm()) <= 0.5 * ALLOWED
    assert float(torch.cosine_similarity(found[0], found[1], 0)) >= 1 - 1e-6
    joint.zero_grad()
    out = measured(joint, joint(x))
    out["a"].sum().backward()  # the other one gets no gradient
    assert float(vector(joint).norm()) <= 0.5 * ALLOWED


def test_shares_are_used_once_and_none_is_left_for_a_later_pass() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return m.a(x), m.b(x)

    _, joint = pair(lambda: Net(forward, a=nn.Linear(4, 2), b=nn.Linear(4, 2)), 0.5)
    a, b = inner = joint(10 * torch.randn(1, 4))
    one, other = measured(joint, inner)
    # Shares for both, of which this takes a part.
    torch.autograd.grad(one.sum() + other.sum(), joint.get_parameter("a.bias"), retain_graph=True)
    one.sum().backward(retain_graph=True, inputs=[*joint.get_submodule("a").parameters()])  # shares for a alone
    before = vector(joint)
    assert 0.99 * 0.5 <= float(before.norm()) <= 0.5 * ALLOWED
    b.sum().backward(retain_graph=True)  # beside the node that measures
    a.sum().backward()
    assert torch.equal(vector(joint), before)


def test_without_a_pass_that_measures_nothing_is_sent() -> None:
    _, joint = pair(positions, 0.5)
    with pytest.warns(UserWarning, match=r"JointRadius\(0\.5\).*no gradient.*Make the model private"):
        joint(torch.randn(3, 6, 6)).sum().backward()
    assert not vector(joint).any()


def test_a_model_that_is_called_on_its_own_output_is_refused() -> None:
    _, joint = pair(lambda: nn.Linear(4, 4), 0.5)
    x = measured(joint, joint(torch.randn(2, 4)))
    with pytest.raises(ConfigurationError, match="computed itself"):
        measured(joint, joint(x)).sum().backward()
    assert joint_radius(joint).measured is None


def test_layers_that_see_other_axes_of_examples_are_refused() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return m.second(m.first(x.transpose(0, 1)).transpose(0, 1))

    _, joint = pair(lambda: Net(forward, first=nn.Linear(4, 4), second=nn.Linear(4, 4)), 0.5)
    with pytest.raises(ConfigurationError, match=r"axes of \[3, 5\] entries.*axis 0"):
        added(joint, torch.randn(3, 5, 4), torch.randn(3, 5, 4))


def test_a_copy_has_one_joint_radius_of_its_own() -> None:
    torch.manual_seed(0)
    model = bound_gradients(attention(), JointRadius(0.5))
    del model.function
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        held = [vars(one)["radius"] for one in (*copied.modules(), *copied.parameters()) if "radius" in vars(one)]
        assert len(held) > 3 and len({id(radius) for radius in held}) == 1
        assert held[0] is not joint_radius(model) and float(held[0]) == 0.5


def test_a_joint_radius_beside_others_is_refused_and_nothing_is_changed() -> None:
    model = bound_gradients(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    with pytest.raises(ConfigurationError, match=r"radius=JointRadius\(2\).*other radii"):
        bound_gradients(model, JointRadius(2.0))
    assert joint_radius(model) is None
    radius = JointRadius(2.0)
    again = bound_gradients(nn.Sequential(BoundedLinear(2, 2, radius=radius), nn.Linear(2, 2)), radius)  # type: ignore[arg-type]
    assert bound_gradients(again, radius) is again and "radius=JointRadius(2)" in repr(again)


@pytest.mark.parametrize("radius", [0.0, -1.0, math.nan, math.inf, 1e-13])
def test_a_joint_radius_is_a_number_above_zero(radius: float) -> None:
    with pytest.raises(ConfigurationError):
        JointRadius(radius)
