"""CorrectedAdam: Adam without noise, and with it a second moment that does not learn the noise."""

import pytest
import torch
from helpers.models import plain
from helpers.runs import Handed, X, Y, private
from helpers.trainers import trainer
from torch import nn

from dplip.errors import ConfigurationError
from dplip.training import CorrectedAdam


@pytest.mark.parametrize("decay, decoupled", [(0.0, False), (0.1, False), (0.1, True)])
def test_without_noise_it_is_adam(decay, decoupled):
    torch.manual_seed(0)
    ours, theirs = plain(), plain()
    theirs.load_state_dict(ours.state_dict())
    arguments = {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": decay}
    torchs = (torch.optim.AdamW if decoupled else torch.optim.Adam)(theirs.parameters(), **arguments)
    own = CorrectedAdam(ours.parameters(), decoupled_weight_decay=decoupled, **arguments)
    for _ in range(20):
        for model, optimizer in ((ours, own), (theirs, torchs)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(X), Y).backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def moved(deviation: float, told: float, floor: float, steps: int = 300) -> torch.Tensor:
    """How far entries whose gradients are 0.1 and 1 have moved, beneath noise of this deviation."""
    generator = torch.Generator().manual_seed(0)
    p = nn.Parameter(torch.zeros(2, 4000))
    optimizer = CorrectedAdam([p], lr=1e-3, betas=(0.9, 0.99), floor=floor)
    for _ in range(steps):
        p.grad = torch.tensor([[0.1], [1.0]]) + deviation * torch.randn(2, 4000, generator=generator)
        optimizer.tell({p: told})
        optimizer.step()
    return -p.detach().mean(1) / (1e-3 * steps)


def test_the_second_moment_is_that_of_the_gradient_and_not_of_the_noise():
    assert moved(0.0, 0.0, 0.1).tolist() == pytest.approx([1.0, 1.0], rel=1e-3)
    learned = moved(2.0, 0.0, 0.1)
    assert learned.tolist() == pytest.approx([0.1 / 2.0, 1 / 5**0.5], rel=0.05)  # divided by what is mostly noise
    known = moved(2.0, 2.0, 0.1)
    assert known[1] == pytest.approx(1.0, rel=0.15)
    assert known[0] == pytest.approx(0.1 / (2.0 * 0.1**0.5), rel=0.35)  # at the floor


def test_the_variance_counts_for_the_steps_that_it_was_told_for():
    p = nn.Parameter(torch.zeros(1000))
    optimizer, generator = CorrectedAdam([p], lr=0.0, betas=(0.9, 0.5)), torch.Generator().manual_seed(0)
    for deviation in (5.0, 1.0, 3.0):
        p.grad = deviation * torch.randn(1000, generator=generator)
        optimizer.tell({p: deviation})
        optimizer.step()
    state = optimizer.state[p]
    assert state["noise"] == pytest.approx(0.5 * 9 + 0.25 * 1 + 0.125 * 25)
    assert float(state["exp_avg_sq"].mean()) == pytest.approx(state["noise"], rel=0.2)


def test_the_private_optimizer_tells_the_deviation_of_the_mean_gradients_noise():
    model = plain()
    inner = CorrectedAdam(model.parameters(), lr=1e-3, betas=(0.9, 0.0))
    run = private(model, optimizer=inner, batches=Handed(40.0))
    run.step(X, Y)
    for p, (_, std) in zip(model.parameters(), run.noise.draws, strict=True):
        assert inner.state[p]["noise"] == pytest.approx((std / 40.0) ** 2)
    noiseless = CorrectedAdam((other := plain()).parameters())
    private(other, optimizer=noiseless, noise_multiplier=0.0).step(X, Y)
    assert all(state["noise"] == 0 for state in noiseless.state.values())


def test_it_is_taken_as_torchs_own_and_a_class_derived_from_it_is_not():
    model = plain()
    assert private(model, optimizer=CorrectedAdam(model.parameters())).optimizer.trusted is None

    class Changed(CorrectedAdam):
        def _move(self, p, gradient, group) -> None:
            super()._move(p, gradient, group)

    with pytest.raises(ConfigurationError, match=r"_move\(\) is not torch's own"):
        private(model, optimizer=Changed(model.parameters()))
    inner = CorrectedAdam(model.parameters())
    inner.step = lambda closure=None: None
    with pytest.raises(ConfigurationError, match=r"step\(\) is not torch's own"):
        private(model, optimizer=inner)


def test_its_state_is_in_a_checkpoint(tmp_path):
    def run():
        torch.manual_seed(0)
        model = plain()
        return trainer(model, optimizer=CorrectedAdam(model.parameters(), lr=0.01), output_dir=tmp_path, epochs=1)

    first = run()
    first.fit()
    second = run()
    second._run.open(resume=True)
    second._run.close()
    states = zip(first.optimizer.state.values(), second.optimizer.state.values(), strict=True)
    assert all(a["noise"] == b["noise"] > 0 and a["step"] == b["step"] == 4 for a, b in states)


@pytest.mark.parametrize(
    "wrong", [{"lr": -1.0}, {"floor": float("nan")}, {"betas": (0.9, 1.0)}, {"eps": "0"}, {"weight_decay": True}]
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        CorrectedAdam(plain().parameters(), **wrong)
