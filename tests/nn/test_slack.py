"""Slack coordinates: with its slack, one example's gradient stays within the radius, whatever the example."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.runs import examples
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from dplip.errors import ConfigurationError
from dplip.nn import BoundedConv2d, BoundedLinear, bound_gradients
from dplip.nn.bounded.slack import leaves, new_slack, slack_of

ALLOWED = 1 + 1e-5
LAYERS = [
    pytest.param(lambda: BoundedLinear(5, 3), (5,), True, id="linear"),
    pytest.param(lambda: BoundedLinear(5, 3, bias=False), (7, 5), False, id="linear over positions"),
    pytest.param(lambda: BoundedConv2d(2, 4, 3, padding=1), (2, 5, 5), False, id="convolution"),
    pytest.param(lambda: BoundedConv2d(2, 4, 3, stride=2, bias=False), (2, 7, 7), False, id="strided convolution"),
]


def adaptive(layer: Any, radius: float, dtype: torch.dtype = torch.float32) -> Any:
    layer = layer.to(dtype).train()
    layer.radius, layer.slack = radius, new_slack(torch.device("cpu"))
    return layer


def sent(layer, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of the weight and of the slack, in float64."""
    for p in leaves(layer):
        p.grad = None
    layer(x).backward(v)
    return layer.weight.grad.double(), layer.slack.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("radius", [1e-6, 0.3, 1e4])
@pytest.mark.parametrize("make, shape, exact", LAYERS)
def test_no_example_attains_more_than_the_radius_with_its_slack(make, shape, exact, radius, dtype):
    torch.manual_seed(0)
    layer = adaptive(make(), radius, dtype)
    worst, least = 0.0, math.inf
    for trial in range(20):
        x = torch.randn(1, *shape, dtype=dtype) * 10.0 ** float(torch.randint(-3, 4, ()))
        if trial % 3 == 0:
            x = torch.ones_like(x)  # positions that add up
        if trial % 5 == 0:
            x = x * (torch.rand_like(x) < 0.2)
        v = torch.ones_like(layer(x)) if trial % 2 else torch.randn_like(layer(x))
        free, _ = sent(adaptive(make(), 1e9, dtype), x, v)
        norm = float(free.norm())
        near = [0.0, 1e-12, 0.1, 0.5, 0.7, 0.999, 1 - 1e-5, 1 - 4e-6, 1 - 1e-7, 1.0, 1 + 1e-7, 1 + 1e-5, 1.1, 4.0, 1e6]
        for share in near:
            gradient, slack = sent(layer, x, v * (share * radius / norm if norm else share))
            joint = math.hypot(float(gradient.norm()), float(slack)) / radius
            worst, least = max(worst, joint), min(least, joint)
    assert 0.99 <= worst <= ALLOWED
    assert not exact or least >= 0.99


def test_the_search_ascends_to_the_radius_and_not_beyond():
    """Ascent of the joint norm in input and cotangent, through the formula of the node, for a convolution."""
    torch.manual_seed(0)
    layer = adaptive(BoundedConv2d(2, 3, 3, padding=1, bias=False), 1.0)
    x: Any = torch.randn(1, 2, 4, 4, requires_grad=True)
    v: Any = torch.randn(1, 3, 4, 4, requires_grad=True)
    for _ in range(60):
        gradient = conv2d_weight(x, layer.weight.shape, v, padding=1)
        (gradient.norm() / (x.norm() * v.norm())).backward()
        with torch.no_grad():
            for t in (x, v):
                t.add_(0.3 * t.grad / t.grad.norm() * t.norm())
                t.div_(t.norm())
                t.grad = None
    for scale in (0.05, 0.1, 0.2, 0.3, 0.33, 0.34, 0.5, 1.0, 10.0):
        gradient, slack = sent(layer, x.detach(), v.detach() * scale)
        assert math.hypot(float(gradient.norm()), float(slack)) <= ALLOWED


def test_the_slack_of_a_batch_is_the_sum_over_its_examples_and_of_none_on_another():
    torch.manual_seed(0)
    layer = adaptive(BoundedLinear(5, 3), 2.0)
    x, v = torch.randn(6, 5), torch.randn(6, 3)
    alone = [float(sent(layer, x[i : i + 1], v[i : i + 1])[1]) for i in range(6)]
    assert float(sent(layer, x, v)[1]) == pytest.approx(sum(alone), rel=1e-12)
    x[2], v[4] = math.nan, math.inf
    gradient, slack = sent(layer, x, v)
    rest = sum(s for i, s in enumerate(alone) if i not in (2, 4))
    assert gradient.isfinite().all()
    assert rest <= float(slack) <= rest + 2 * 2.0 * ALLOWED


def test_the_share_says_how_far_gradients_are_from_the_radius():
    n = torch.tensor([0.0, 0.6, 1.0, 5.0, math.inf], dtype=torch.float64)
    found = [float(slack_of(1.0, [n[i : i + 1]])) for i in range(5)]
    assert found == pytest.approx([1.0, 0.8, 0.0, 0.0, 0.0], abs=1e-4)


def test_where_the_weight_is_frozen_the_slack_is_the_biass():
    torch.manual_seed(0)
    layer = adaptive(BoundedLinear(5, 3), 1.0)
    layer.weight.requires_grad_(False)
    for scale in (0.01, 0.3, 1.0, 100.0):
        layer.bias.grad = layer.slack.grad = None
        layer(100 * torch.randn(1, 5)).backward(scale * F.normalize(torch.randn(1, 3)))
        assert 0.99 <= math.hypot(float(layer.bias.grad.norm()), float(layer.slack.grad)) <= ALLOWED
    layer.bias.requires_grad_(False)
    assert not [p for p in leaves(layer) if p.requires_grad]


def test_a_layer_used_twice_has_the_slack_of_both_uses():
    layer = adaptive(BoundedLinear(4, 4), 1.0)
    x, _ = examples(1, features=4).tensors
    layer(torch.tanh(layer(x))).backward(torch.full((1, 4), 1e-9))
    assert float(layer.slack.grad) == pytest.approx(2.0, rel=1e-4)


def test_an_automatic_radius_leaves_the_state_dict_as_it_was_and_evaluation_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(18, 4))
    keys = list(model.state_dict())
    assert list(bound_gradients(model, radius="auto").state_dict()) == keys
    assert len(leaves(model)) == 6 and len(list(model.parameters())) == 4
    model.eval()(torch.randn(2, 1, 5, 5)).sum().backward()
    assert model[0].slack.grad is None and model[2].slack.grad is None


def test_a_radius_that_is_no_number_is_refused():
    with pytest.raises(ConfigurationError, match=r"radius='automatic'.*'auto'"):
        bound_gradients(nn.Linear(2, 2), radius="automatic")
