"""Physical batches: the step of the whole batch, with one draw of noise."""

import pytest
import torch
from helpers.models import built
from helpers.runs import Run, X, Y, examples, private
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import dplip
from dplip.errors import ConfigurationError
from dplip.losses import CrossEntropy
from dplip.sampling import PoissonLoader


def train_in_parts(limit: int | None, order: str, seed: int | None = 5) -> tuple[Run, int]:
    """Two epochs over the same Poisson batches, handed out in parts of at most ``limit``."""
    model = built("plain")[0]
    data = examples(40)
    loader = PoissonLoader(data, batch_size=10, max_physical_batch_size=limit, seed=1)
    inner = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.5)
    # So little noise that its scale, which grows with the rounding of the parts' sums, does not show.
    run = private(model, noise_multiplier=1e-4, optimizer=inner, batches=loader, seed=seed)
    parts = 0
    for _ in range(2):
        for x, y in loader:
            parts += 1
            if order == "zero first":
                run.optimizer.zero_grad()
            run.loss(model(x), y).backward()
            run.optimizer.step()
            if order == "zero last":
                run.optimizer.zero_grad()
    return run, parts


@pytest.mark.parametrize("limit", [1, 3, 64])
@pytest.mark.parametrize("order", ["zero first", "zero last"])
def test_physical_batches_give_the_step_of_the_whole_batch_with_one_draw_of_noise(limit, order):
    whole, logical = train_in_parts(None, order)
    split, physical = train_in_parts(limit, order)
    assert physical > logical == 8 or limit == 64
    assert len(split.charged) == len(whole.charged) == 8
    assert len(split.noise.draws) == len(whole.noise.draws) == 8 * 4
    for name, weight in split.weights().items():
        torch.testing.assert_close(weight, whole.weights()[name], rtol=1e-5, atol=1e-6)


def test_nothing_is_spent_or_moved_before_the_last_part_of_a_batch():
    run = private(built("plain")[0], optimizer=None)
    before = run.weights()
    run.batches.give(5, complete=False)
    run.loss(run.model(X[:5]), Y[:5]).backward()
    run.optimizer.step()
    assert not run.charged and not run.noise.draws
    assert all(torch.equal(before[n], w) for n, w in run.weights().items())


def test_a_new_pass_over_the_data_drops_the_parts_of_an_abandoned_batch():
    model = built("plain")[0]
    loader = PoissonLoader(examples(40), batch_size=20, max_physical_batch_size=4, seed=1)
    run = private(model, noise_multiplier=0.0, batches=loader)
    for x, y in loader:
        run.optimizer.zero_grad()
        run.loss(model(x), y).backward()
        run.optimizer.step()
        assert not loader.complete
        break
    held: list[Tensor] = []
    for x, y in loader:
        run.optimizer.zero_grad()
        run.loss(model(x), y).backward()
        held.append(x)
        run.optimizer.step()
        if loader.complete:
            break
    assert len(run.charged) == 1
    released = run.released()
    rows = torch.cat(held)
    labels = torch.cat([Y[(X == row).all(1)] for row in rows])
    model.zero_grad()
    CrossEntropy()(model(rows), labels).backward()
    for name, gradient in released.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad / 20.0, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("order", ["one by one", "a sum of losses", "a sum of losses of outputs made before"])
def test_a_batch_may_be_passed_back_in_parts(order):
    run = private(built("plain")[0], noise_multiplier=0.0)
    parts = [(X[:9], Y[:9]), (X[9:], Y[9:])]
    run.batches.give(len(X))
    if order == "one by one":
        for x, y in parts:
            run.loss(run.model(x), y).backward()
    elif order == "a sum of losses":
        sum(run.loss(run.model(x), y) for x, y in parts).backward()
    else:
        scores = [run.model(x) for x, _ in parts]
        sum(run.loss(z, y) for z, (_, y) in zip(scores, parts, strict=True)).backward()
    run.optimizer.step()
    whole = private(built("plain")[0], noise_multiplier=0.0)
    whole.step(X, Y)
    for name, gradient in run.released().items():
        torch.testing.assert_close(gradient, whole.released()[name])


def test_a_part_that_is_not_finite_is_refused_whichever_it_is():
    """A Tanh bounds its output and lets NaN through; the part with it is seldom a batch's last."""
    x, y = torch.randn(60, 6), torch.randint(4, (60,))
    x[7] = torch.nan
    model = nn.Sequential(nn.Tanh(), nn.Linear(6, 4))
    loader = PoissonLoader(TensorDataset(x, y), batch_size=30, max_physical_batch_size=4, seed=1)
    loss, charged = dplip.losses.CrossEntropy(), list[dplip.accounting.Event]()
    optimizer = dplip.DPLipOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model=model,
        loss=loss,
        input_shape=(6,),
        noise_multiplier=1.0,
        batches=loader,
        charge=charged.append,
    )
    with pytest.raises(ConfigurationError, match="a gradient is NaN or infinite"):
        for _ in range(4):
            for inputs, targets in loader:
                optimizer.zero_grad()
                loss(model(inputs), targets).backward()
                optimizer.step()
    assert len(charged) < 4 * len(loader)
    assert all(bool(p.isfinite().all()) for p in model.parameters())
