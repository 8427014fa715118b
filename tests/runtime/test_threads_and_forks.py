"""Threads share no mask and no noise, and neither do forks."""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.forks import forks, in_a_fork
from helpers.runs import examples
from torch import nn

import dplip
from dplip.errors import ConfigurationError
from dplip.noise import GaussianNoise
from dplip.noise.gaussian import _Pool
from dplip.runtime.secret import Secret, lent
from dplip.sampling import PoissonLoader


def in_two_threads(function) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(function, range(2)))


def test_two_threads_have_masks_of_their_own_and_leave_the_global_state_as_it_was():
    passes, both = [], threading.Barrier(2)

    def run(number: int) -> None:
        secret = Secret()
        for _ in range(5):
            both.wait()
            time.sleep(0.002 * number)  # one is inside when the other comes
            with lent(secret, dropout=False):
                time.sleep(0.004)
                passes.append(tuple(torch.rand(4).tolist()))

    torch.manual_seed(0)
    before = torch.get_rng_state()
    known = tuple(torch.rand(4).tolist())
    torch.set_rng_state(before)
    in_two_threads(run)
    assert torch.equal(before, torch.get_rng_state())
    assert len(set(passes)) == 10 and known not in passes


def test_a_thread_does_not_wait_for_ever_for_one_that_stays_inside(monkeypatch):
    monkeypatch.setattr("dplip.runtime.secret.PATIENCE", 0.01)
    with lent(Secret(), dropout=False), ThreadPoolExecutor(1) as pool:
        with pytest.raises(ConfigurationError, match="another thread"):
            pool.submit(lent(Secret(), dropout=False).__enter__).result()


@forks
def test_a_fork_has_its_own_turn(monkeypatch):
    monkeypatch.setattr("dplip.runtime.secret.PATIENCE", 0.01)
    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with lent(Secret(), dropout=False):
            inside.set()
            leave.wait()

    def draw() -> bool:
        with lent(Secret(), dropout=False):
            return True

    with ThreadPoolExecutor(1) as pool:
        staying = pool.submit(stay)
        inside.wait()
        answer = in_a_fork(draw)
        leave.set()
        staying.result()
    assert answer is True


def test_two_threads_that_share_a_source_share_no_noise():
    noise, drawn = GaussianNoise(), []
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        in_two_threads(lambda _: drawn.extend(noise.add_(torch.zeros(4), 1.0) for _ in range(4000)))
    finally:
        sys.setswitchinterval(usual)
    assert len({tuple(draws.tolist()) for draws in drawn}) == 8000


def test_one_thread_at_a_time_takes_from_a_source(monkeypatch):
    noise, inside, together, take = GaussianNoise(), [], [], _Pool.take

    def slowly(pool: _Pool, count: int) -> torch.Tensor:
        inside.append(count)
        together.append(len(inside))
        time.sleep(0.01)  # long enough for the other thread to come
        inside.pop()
        return take(pool, count)

    monkeypatch.setattr(_Pool, "take", slowly)
    in_two_threads(lambda _: [noise.add_(torch.zeros(4), 1.0) for _ in range(5)])
    assert together == [1] * 10


@forks
def test_noise_and_masks_of_a_fork_are_its_own():
    source = GaussianNoise()

    def both():
        return source.add_(torch.zeros(300_000), 1.0)[::1000].tolist(), source.masks.bits.random_raw(2).tolist()

    both()  # blocks are drawn ahead by now
    (noise, masks), (again, others), (ours, own) = in_a_fork(both), in_a_fork(both), both()
    assert not set(noise) & set(ours) and not set(noise) & set(again)
    assert masks != own != others != masks


@forks
def test_a_seeded_source_does_not_draw_in_a_fork():
    source, loader = GaussianNoise(3), PoissonLoader(examples(), batch_size=4, seed=3)
    for draw in (lambda: source.add_(torch.zeros(2), 1.0), lambda: list(loader)):
        wrong = in_a_fork(draw)
        assert isinstance(wrong, ConfigurationError) and "seed=3: this process was forked" in str(wrong)


# One draw, one release


def two_optimizers(shared: bool):
    """Two models with private optimizers over one loader; or one model with two."""
    loader = PoissonLoader(examples(), batch_size=10)
    model, made = None, []
    for _ in range(2):
        if model is None or not shared:
            model = nn.Sequential(dplip.nn.BallProjection(1.0), nn.Linear(6, 4))
        loss = dplip.losses.CrossEntropy()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        engine = dplip.PrivacyEngine()
        arguments = {"data_loader": loader, "criterion": loss, "noise_multiplier": 1.0}
        made.append((*engine.make_private(module=model, optimizer=optimizer, **arguments)[:2], loss, engine))
    return loader, made


@pytest.mark.parametrize("shared", [False, True], ids=["two models", "one model"])
def test_one_draw_is_never_in_two_releases(shared):
    loader, made = two_optimizers(shared)
    x, y = next(iter(loader))
    taken = 0
    for model, _, loss, _ in made:
        loss(model(x), y).backward()
    for _, optimizer, _, _ in made:
        try:
            optimizer.step()
            taken += 1
        except ConfigurationError:
            pass
    assert taken <= 1 and sum(engine.accountant.num_steps for *_, engine in made) == taken


def test_secret_draws_cost_little():
    secret = Secret()
    started = time.perf_counter()
    for _ in range(200):
        with lent(secret, dropout=True):
            pass
    assert time.perf_counter() - started < 0.2  # a millisecond each; some 25 microseconds on an idle machine
