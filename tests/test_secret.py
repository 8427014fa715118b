"""Secret randomness: masks and augmentation that no known seed fixes, and draws that no copy or fork repeats."""

import copy
import os
import pickle
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_runs import examples, private
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import dplip
from dplip.errors import ConfigurationError, DPLipError
from dplip.noise import GaussianNoise
from dplip.noise.gaussian import _Pool
from dplip.runtime.secret import Secret, lent
from dplip.sampling import FixedSizeLoader, PoissonLoader
from dplip.training.feature_extractor import features
from dplip.training.mean_release import mean_release

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def in_a_fork(function):
    """What a function returns, or the error that it raises, in a process forked now."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            try:
                answer = function()
            except BaseException as wrong:
                answer = wrong
            os.write(writing, pickle.dumps(answer))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pickle.loads(pipe.read())
    os.waitpid(process, 0)
    return answer


# Masks

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


# What reads examples


class Augmented(Dataset):
    """Items with noise from one of the global generators."""

    def __init__(self, draw) -> None:
        self.draw = draw

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int):
        return torch.tensor([float(self.draw())]), index


@pytest.mark.parametrize("draw", [lambda: torch.rand(()), np.random.random, random.random], ids=["t", "np", "py"])
def test_augmentation_follows_no_known_seed(draw):
    def seeded() -> None:
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)

    def after(loader: PoissonLoader) -> torch.Tensor:
        seeded()
        return next(iter(loader))[0]

    loader = PoissonLoader(Augmented(draw), sample_rate=1.0)
    assert not torch.equal(after(loader), after(loader))
    seeded()
    expected = [float(draw()) for _ in range(3)]
    after(loader)
    assert [float(draw()) for _ in range(3)] == expected
    one, two = (after(PoissonLoader(Augmented(draw), sample_rate=1.0, seed=2)) for _ in range(2))
    assert torch.equal(one, two) and len(one.unique()) == 40


@pytest.mark.parametrize("draw", [lambda: torch.rand(()), np.random.random, random.random], ids=["t", "np", "py"])
def test_augmentation_that_is_read_before_training_follows_no_known_seed(draw):
    """A fixed front end and the mean of the inputs: under a known seed one example less would change all the others."""

    class Silent(GaussianNoise):
        def add_(self, tensor, std):
            return tensor

    def precomputed(seed=None):
        return features(dplip.nn.BallProjection(9.0), Augmented(draw), seed=seed).tensors[0]

    def mean():
        model = nn.Sequential(dplip.nn.PrivateMean((1,), 9.0), dplip.nn.BallProjection(1.0), nn.Linear(1, 2))
        release = mean_release(model, (1,))
        release.run(Augmented(draw), Silent(), 1.0, 40)
        return release.layer.mean

    def after(read):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        return read()

    for read in (precomputed, mean):
        assert not torch.equal(after(read), after(read))
    assert torch.equal(precomputed(seed=2), precomputed(seed=2))


# Threads


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


# Copies and forks


def loaders():
    data = TensorDataset(torch.arange(400.0)[:, None], torch.zeros(400))
    items = Augmented(np.random.random)
    return [
        PoissonLoader(data, batch_size=20),
        PoissonLoader(Subset(data, range(300)), batch_size=20),
        PoissonLoader(items, batch_size=20),
        FixedSizeLoader(data, batch_size=20),
    ]


COPIES = [copy.copy, copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))]


def drawn(loader) -> list:
    """The batches of the coming steps."""
    return [loader._draw().tolist() for _ in range(4)]


@pytest.mark.parametrize("duplicate", COPIES, ids=["copy", "deepcopy", "pickle"])
@pytest.mark.parametrize("loader", loaders(), ids=["tensors", "subset", "items", "fixed"])
def test_a_copied_loader_draws_other_batches(duplicate, loader):
    twin = duplicate(loader)
    assert drawn(twin) != drawn(loader)
    assert all(x.shape[1:] == (1,) for x, _ in twin)


@pytest.mark.parametrize("duplicate", COPIES[1:], ids=["deepcopy", "pickle"])
def test_a_seeded_loader_is_not_copied(duplicate):
    with pytest.raises(ConfigurationError, match="seed=3"):
        duplicate(PoissonLoader(examples(), batch_size=4, seed=3))


@forks
@pytest.mark.parametrize("loader", loaders(), ids=["tensors", "subset", "items", "fixed"])
def test_a_forked_process_draws_other_batches(loader):
    drawn(loader)
    theirs, others = in_a_fork(lambda: drawn(loader)), in_a_fork(lambda: drawn(loader))
    ours = drawn(loader)
    assert ours != theirs != others != ours


@forks
@pytest.mark.parametrize("limit", [None, 3])
def test_an_iteration_that_had_begun_does_not_go_on_in_a_fork(limit):
    loader = PoissonLoader(examples(), batch_size=10, max_physical_batch_size=limit)
    iterator = iter(loader)
    next(iterator)
    assert isinstance(wrong := in_a_fork(lambda: next(iterator)), ConfigurationError) and "began in process" in str(
        wrong
    )
    next(iterator)
    assert len(in_a_fork(lambda: [len(x) for x, _ in loader])) >= 4


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


class Stream(IterableDataset):
    """What a user would write to read ahead by workers."""

    def __init__(self, loader: PoissonLoader) -> None:
        self.loader = loader

    def __iter__(self):
        return iter(self.loader)


def test_workers_of_a_data_loader_draw_each_their_own():
    stream = Stream(PoissonLoader(TensorDataset(torch.arange(500.0)[:, None]), batch_size=50))
    batches = [tuple(x[:, 0].tolist()) for (x,) in DataLoader(stream, batch_size=None, num_workers=2)]
    assert len(batches) == 20 and len(set(batches)) == 20


def test_a_stream_of_examples_is_refused_for_what_it_is():
    with pytest.raises(ConfigurationError, match="dataset=Stream: examples are drawn by index"):
        PoissonLoader.from_data_loader(DataLoader(Stream(PoissonLoader(examples(), batch_size=4)), batch_size=4))


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
