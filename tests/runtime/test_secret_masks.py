"""Secret masks: no known seed fixes them, and the global state stays."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.runs import private
from torch import nn
from torch.utils.checkpoint import checkpoint

import dplip
from dplip.errors import ConfigurationError, DPLipError
from dplip.runtime.secret import Secret, lent

B, D = 128, 64


class Functional(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, self.training)


def dropping(layer: nn.Module) -> nn.Module:
    """What a row's mask keeps of it enters the weight's gradient."""
    model = nn.Sequential(
        dplip.nn.BallProjection(1.0), layer, dplip.nn.BallProjection(1.0), nn.Linear(D, 1, bias=False)
    )
    nn.init.zeros_(model[3].weight)
    return model.train()


def summed(run, x: torch.Tensor) -> torch.Tensor:
    """The summed gradient of a batch by one whose torch seed is known."""
    torch.manual_seed(0)
    run.batches.take()
    run.backward(x, torch.zeros(len(x), 1))
    return run.model[3].weight.grad.clone()


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), Functional()], ids=["module", "functional"])
def test_whoever_knows_the_global_seed_knows_no_mask(layer):
    """One row fewer would move all rows to other masks: here to such as keep nothing, where before they kept all."""
    run = private(dropping(layer), loss=dplip.losses.Hinge(), input_shape=(D,))
    torch.manual_seed(0)
    masks = F.dropout(torch.ones(B, D), 0.5) > 0
    x = torch.zeros(B, D)
    for row in range(1, B):
        x[row, (masks[row] & ~masks[row - 1]).nonzero()[0, 0]] = 1.0

    def kept(rows: torch.Tensor) -> float:
        return float(summed(run, rows).sum().abs())

    one = max(kept(x[1:2]) for _ in range(30))  # what a row that is kept adds
    for rows in (x, x[1:]):
        assert 0.25 * B < kept(rows) / one < 0.75 * B


@pytest.mark.parametrize(
    "layer",
    [
        nn.Dropout(0.5),
        Functional(),
        nn.Sequential(nn.Unflatten(1, (32, 2)), nn.Dropout1d(0.5), nn.Flatten()),
        nn.Sequential(nn.Unflatten(1, (16, 2, 2)), nn.Dropout2d(0.5), nn.Flatten()),
        dplip.nn.SortNetLinear(D, D, rho=0.5),
    ],
    ids=["dropout", "functional", "dropout1d", "dropout2d", "sortnet"],
)
def test_masks_are_fresh_and_the_global_state_stays(layer):
    run = private(dropping(layer), loss=dplip.losses.Hinge(), input_shape=(D,))
    x = torch.randn(20, D, generator=torch.Generator().manual_seed(1))
    one, state = summed(run, x), torch.get_rng_state()
    assert not torch.equal(one, summed(run, x))
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)  # as if nothing had been drawn


def test_a_seeded_run_repeats_its_masks():
    def first(seed: int) -> torch.Tensor:
        run = private(dropping(nn.Dropout(0.5)), loss=dplip.losses.Hinge(), input_shape=(D,), seed=seed)
        return summed(run, torch.ones(3, D))

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_what_records_no_gradient_follows_the_global_seed():
    run = private(dropping(nn.Dropout(0.5)), loss=dplip.losses.Hinge(), input_shape=(D,))
    nn.init.ones_(run.model[3].weight)
    with torch.no_grad():
        torch.manual_seed(3)
        one = run.model(torch.ones(2, D))
        torch.manual_seed(3)
        assert torch.equal(run.model(torch.ones(2, D)), one)


def test_a_pass_that_fails_gives_the_global_state_back():
    run = private(dropping(nn.Dropout(0.5)), loss=dplip.losses.Hinge(), input_shape=(D,))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError):
        run.model(torch.ones(2, D + 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.overrides._get_current_function_mode_stack()


def test_masks_change_with_the_mode_of_the_model():
    """What was built in evaluation mode may come to drop in training."""
    run = private(dropping(Functional()).eval(), loss=dplip.losses.Hinge(), input_shape=(D,))
    x = torch.ones(4, D)
    assert torch.equal(summed(run, x), summed(run, x))
    run.model.train()
    for _ in range(3):
        assert not torch.equal(summed(run, x), summed(run, x))
        run.batches.take()
        run.step(x, torch.zeros(4, 1))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(
    "drop, shape, axes",
    [(F.dropout, (500, 400), 0), (F.dropout1d, (500, 400, 3), 1), (F.dropout2d, (500, 400, 2, 2), 2)],
)
def test_masks_have_their_law(drop, shape, axes, p):
    with lent(Secret(), dropout=True):
        y = drop(torch.ones(shape), p)
    assert torch.equal(y.unique(), torch.tensor([0.0, 1.0]).div(1 - p))
    entries = y.flatten(2)[..., 0] if axes else y
    assert axes == 0 or torch.equal(y.flatten(2), entries[..., None].expand_as(y.flatten(2)))
    kept = (entries > 0).double()
    assert abs(kept.mean() - (1 - p)) < 6 * (p * (1 - p) / kept.numel()) ** 0.5
    rows = torch.corrcoef(kept[:200]) - torch.eye(200)
    assert rows.abs().max() < 6 / 400**0.5


@pytest.mark.parametrize(
    "drop, p, shape", [(F.dropout, 0.0, (3, 4)), (F.dropout, 1.0, (3, 4)), (F.dropout1d, 0.5, (3, 4))]
)
def test_what_is_out_of_the_ordinary_is_left_to_torch(drop, p, shape):
    with lent(Secret(), dropout=True):
        assert drop(torch.ones(shape), p).shape == shape
    with lent(Secret(), dropout=True):
        assert torch.equal(F.dropout(torch.ones(3), 0.5, training=False), torch.ones(3))


def test_the_whole_state_of_torchs_generator_is_secret():
    """Its seed alone would leave 32 bits: few enough to try them all."""
    words = np.random.SFC64(np.random.SeedSequence(5)).random_raw(312).view(np.uint32)
    twister = np.random.RandomState()
    twister.set_state(("MT19937", words, 624, 0, 0.0))
    expected = twister.randint(0, 2**32, 2000, dtype=np.uint64)[1::2] % 2**31
    with lent(Secret(5), dropout=False):
        assert np.array_equal(torch.empty(1000, dtype=torch.int64).random_(0, 2**31).numpy(), expected)


def test_dropout_does_not_go_by_torchs_generator():
    """On an Intel processor torch would make a mask of 31 bits of it."""
    with lent(Secret(), dropout=True):
        before = torch.get_rng_state()
        for drop, shape in ((F.dropout, (4, 5)), (F.dropout1d, (4, 5, 2)), (F.dropout2d, (4, 5, 2, 2))):
            drop(torch.ones(shape), 0.5)
        assert torch.equal(torch.get_rng_state(), before)


def gradients_of_known_seeds(run, called, steps: int) -> list[torch.Tensor]:
    """The gradient of each step, before each of which torch's state is made known."""
    found = []
    for _ in range(steps):
        torch.manual_seed(0)
        run.batches.give(4)
        run.optimizer.zero_grad()
        run.loss(called(torch.ones(4, D)), torch.zeros(4, 1)).backward()
        found.append(run.model[3].weight.grad.clone())
        run.optimizer.step()
    torch._dynamo.reset()
    return found


@pytest.mark.parametrize("wrapped", [False, True], ids=["model.compile", "torch.compile"])
def test_a_compiled_model_draws_in_secret(wrapped):
    model = dropping(nn.Dropout(0.5))
    run = private(model, loss=dplip.losses.Hinge(), input_shape=(D,))
    torch._dynamo.reset()
    called = torch.compile(model, backend="aot_eager") if wrapped else model
    if not wrapped:
        model.compile(backend="aot_eager")
    sums = gradients_of_known_seeds(run, called, 3)
    assert len(run.charged) == 3 and not torch.equal(sums[0], sums[1]) and not torch.equal(sums[1], sums[2])


def test_a_model_that_is_compiled_to_plain_operations_drops_in_secret():
    model = dropping(nn.Dropout(0.5))
    run = private(model, loss=dplip.losses.Hinge(), input_shape=(D,))
    torch._dynamo.reset()
    model.compile(backend="eager")
    sums = gradients_of_known_seeds(run, model, 2)
    assert len(run.charged) == 2 and not torch.equal(*sums)


class Recomputed(nn.Module):
    def forward(self, x):
        return checkpoint(lambda v: F.dropout(v, 0.5, self.training).square().clamp(0, 1), x, use_reentrant=False)


def test_what_is_computed_again_has_the_mask_that_it_had():
    """One entry that is dropped must send no gradient back."""
    with lent(Secret(), dropout=True):
        x = torch.full((D,), 0.1, requires_grad=True)
        y = Recomputed()(x)
    y.sum().backward()
    assert torch.equal(y > 0, x.grad > 0) and 0 < int((y > 0).sum()) < D


class FromNumpy(nn.Module):
    def forward(self, x):
        return x * float(np.random.random() > 2)


def test_a_model_that_draws_from_other_generators_is_refused():
    model = nn.Sequential(dplip.nn.BallProjection(1.0), dplip.nn.Frozen(FromNumpy()), nn.Linear(6, 4))
    with pytest.raises(DPLipError, match="numpy's or Python's global generator"):
        dplip.sensitivity(model, dplip.losses.CrossEntropy(), (6,))


class Smoothed(dplip.losses.CrossEntropy):
    def per_example(self, outputs, targets):
        return super().per_example(outputs * torch.rand(len(outputs), 1), targets)


def test_a_loss_that_draws_by_place_is_refused():
    with pytest.raises(ConfigurationError, match="depends on the others"):
        private(nn.Sequential(dplip.nn.BallProjection(1.0), nn.Linear(6, 4)), loss=Smoothed())
