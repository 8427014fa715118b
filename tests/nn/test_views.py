"""Several views of one example: one contribution, one bound, one certificate."""

import pytest
import torch
from torch import nn

import dplip
from dplip import nn as dn
from dplip.errors import ConfigurationError, UnboundedOperationError
from dplip.losses import CrossEntropy, Huber

SHAPE = (2, 4, 6)


def network(bounded: bool) -> nn.Sequential:
    torch.manual_seed(0)
    body = nn.Sequential(dn.BallProjection(3.0), nn.Flatten(), dn.OrthogonalLinear(48, 48), dn.GroupSort(2))
    model = nn.Sequential(dn.MeanOverViews(body, [nn.Identity(), dn.Mirror()]), dn.OrthogonalLinear(48, 4))
    return dn.bound_gradients(model, radius=0.7) if bounded else model


@pytest.mark.parametrize("bounded", [False, True])
def test_no_example_moves_a_shared_weight_further_than_declared(bounded):
    model, loss = network(bounded), CrossEntropy(5.0, normalize=True)
    declared = dplip.sensitivity(model, loss, SHAPE)
    most = dict.fromkeys(declared, 0.0)
    generator = torch.Generator().manual_seed(1)
    for size in (0.1, 1.0, 100.0):
        for attempt in range(60):
            x = size * torch.randn(1, *SHAPE, generator=generator)
            if attempt % 2:
                x = x + x.flip(-1)  # both views alike: their gradients add up without loss
            model.zero_grad()
            loss(model(x), torch.tensor([attempt % 4])).backward()
            for name, p in model.named_parameters():
                most[name] = max(most[name], float(p.grad.norm()))
    assert all(most[name] <= bound for name, bound in declared.items())
    assert all(most[name] > 0.99 * bound for name, bound in declared.items())  # all are reached: no less would do


def test_shared_weights_cost_no_more_than_one_view_and_a_bounded_layer_once_a_view():
    loss, name = CrossEntropy(normalize=True), "0.model.2.weight"
    free, bounded = dplip.sensitivity(network(False), loss, SHAPE), dplip.sensitivity(network(True), loss, SHAPE)
    assert free[name] == pytest.approx(3.0, rel=1e-4)
    assert bounded[name] == pytest.approx(2 * 0.7, rel=1e-4)


def test_the_gradient_is_the_mean_over_the_views_of_one_example():
    model, x, y = network(False), torch.randn(5, *SHAPE), torch.tensor([0, 1, 2, 3, 0])
    views = model[0]
    outputs = torch.stack([model[1](views.model(view(x))) for view in views.views]).mean(0)
    torch.testing.assert_close(model(x), outputs)
    torch.testing.assert_close(model(x), model(x.flip(-1)))  # blind to the view
    assert not torch.allclose(views.model(x), views.model(x.flip(-1)))
    CrossEntropy()(model(x), y).backward()
    together = views.model[2].weight.grad.clone()
    model.zero_grad()
    for one, label in zip(x, y, strict=True):
        CrossEntropy()(model(one[None]), label[None]).backward()
    torch.testing.assert_close(views.model[2].weight.grad, together)


def test_the_certificate_is_that_of_one_view():
    model = network(True).eval()
    assert dplip.lipschitz(model, SHAPE) == pytest.approx(1.0, abs=1e-4)
    generator = torch.Generator().manual_seed(2)
    a, b = (torch.randn(200, *SHAPE, generator=generator) for _ in range(2))
    moved = (model(a) - model(b)).norm(dim=1) / (a - b).flatten(1).norm(dim=1)
    assert float(moved.detach().max()) <= dplip.lipschitz(model, SHAPE)


def test_views_are_given_and_are_not_left_to_chance():
    with pytest.raises(ConfigurationError, match="views"):
        dn.MeanOverViews(nn.Identity(), [])
    model = nn.Sequential(dn.BallProjection(1.0), dn.MeanOverViews(nn.Linear(4, 2), [nn.Identity(), nn.RReLU()]))
    with pytest.raises(UnboundedOperationError, match="RReLU"):
        dplip.sensitivity(model, CrossEntropy(), (4,))


def test_a_mirror_of_examples_without_an_axis_is_refused():
    """Its last axis would be the batch's; a clamp that is flat at the probe's inputs would hide that."""
    with pytest.raises(UnboundedOperationError, match="axis of an example"):
        dplip.sensitivity(nn.Sequential(dn.Clamp(5.0, 6.0), dn.Mirror()), Huber(), ())


def test_a_flip_of_the_batch_is_refused():
    class Reversed(nn.Module):
        def forward(self, x):
            return x.flip(0)

    model = nn.Sequential(dn.BallProjection(1.0), Reversed(), nn.Linear(4, 2))
    with pytest.raises(UnboundedOperationError, match="mix"):
        dplip.sensitivity(model, CrossEntropy(), (4,))
