"""Models of patches and of sequences train privately, and their radii hold under attack."""

import math

import pytest
import torch
from helpers.models import attending, patches
from helpers.runs import examples
from helpers.trainers import trainer
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import dplip

KINDS = {"patches": (patches, (2, 8, 8)), "attending": (attending, (4, 3))}


def data(shape: tuple[int, ...], seed: int) -> TensorDataset:
    x, y = examples(200, math.prod(shape), seed=seed).tensors
    return TensorDataset(1.5 / math.sqrt(math.prod(shape)) * x.reshape(-1, *shape), y)  # inside the ball of radius 2


def ascended(model: nn.Module, x: Tensor, radius: Tensor, steps: int = 30) -> Tensor:
    """Inputs within the radii, by ascent of the runner-up's score over that of the predicted class."""
    size = radius.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    before, move = model(x).argmax(1, keepdim=True), torch.zeros_like(x)
    for _ in range(steps):
        move.requires_grad_()
        z = model(x + move)
        rival = z.scatter(1, before, -torch.inf).amax(1)
        (up,) = torch.autograd.grad((rival - z.gather(1, before)[:, 0]).sum(), move)
        move = move.detach() + 0.5 * size * up / up.flatten(1).norm(dim=1).reshape(size.shape).clamp_min(1e-30)
        move = move * (size / move.flatten(1).norm(dim=1).reshape(size.shape).clamp_min(1e-30)).clamp_max(1.0)
    return x + move


@pytest.mark.parametrize("kind", KINDS)
def test_a_private_run_ends_with_radii_that_hold(kind):
    build, shape = KINDS[kind]
    torch.manual_seed(0)
    run = trainer(
        build(), lr=0.05, train_dataset=data(shape, 0), eval_dataset=data(shape, 1), noise_multiplier=0.3, epochs=6
    )
    assert all(math.isfinite(s) and s > 0 for s in run.plan().sensitivities.values())
    before = [p.clone() for p in run.model.parameters()]
    model = run.fit().model.eval()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    x, y = data(shape, 1).tensors
    predicted = model(x).argmax(1)
    assert float((predicted == y).float().mean()) > 0.6  # by chance: 0.25
    certified = dplip.certify(model, x)
    assert float((certified > 0).float().mean()) > 0.99
    assert bool((model(ascended(model, x, 0.999 * certified)).argmax(1) == predicted).all())
    # The attack is strong enough to break what is not certified.
    assert float((model(ascended(model, x, 4 * certified)).argmax(1) != predicted).float().mean()) > 0.5
