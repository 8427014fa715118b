"""Batches of a fixed size without replacement: how they are drawn, what they cost, and how a run is recorded."""

import itertools
import json
import math
from collections import Counter

import dp_accounting as dp
import numpy as np
import pytest
import torch
from dp_accounting.rdp import RdpAccountant
from small_models import orthogonal
from small_runs import examples, interrupted
from torch.utils.data import TensorDataset

from dplip import DPLipTrainer
from dplip.accounting import (
    Accountant,
    FixedSizeEvent,
    GaussianEvent,
    event_of,
    fixed_size_epsilon,
    get_noise_multiplier,
    to_dp_event,
)
from dplip.accounting.rdp import renyi_divergence
from dplip.cli.app import app
from dplip.errors import ConfigurationError, LedgerError
from dplip.losses import CrossEntropy
from dplip.records import Ledger, read_report
from dplip.sampling import FixedSizeLoader

torch.set_num_threads(1)

DELTA = 1e-5
TRAIN = examples(80)


def positions(size: int = 80, batch_size: int = 20, **arguments) -> FixedSizeLoader:
    """A loader whose examples are their own positions."""
    return FixedSizeLoader(TensorDataset(torch.arange(size)), batch_size=batch_size, **arguments)


def trainer(folder=None, **arguments) -> DPLipTrainer:
    """Four epochs of four steps."""
    torch.manual_seed(0)
    model = orthogonal()
    given = {"neighboring": "replace_one", "sampling": "fixed_size", "batch_size": 20, "epochs": 4, **arguments}
    if "noise_multiplier" not in given:
        given.setdefault("target_epsilon", 4.0)
    return DPLipTrainer(
        model,
        loss=CrossEntropy(8.0, normalize=True),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        train_dataset=TRAIN,
        output_dir=folder,
        progress=False,
        **given,
    )


# The draw


@pytest.mark.parametrize("size, batch_size, most", [(80, 20, None), (80, 80, 33), (80, 1, None), (20_000, 37, 10)])
def test_every_batch_holds_exactly_so_many_different_examples(size, batch_size, most):
    loader = positions(size, batch_size, max_physical_batch_size=most, steps_per_epoch=6)
    batches, rows = [], []
    for (x,) in loader:
        assert most is None or len(x) <= most
        rows += x.tolist()
        if loader.complete:
            assert loader.take() == batch_size == len(rows) == len(set(rows)) == loader.expected_batch_size
            batches, rows = [*batches, tuple(rows)], []
    assert len(batches) == 6
    assert batch_size == size or len(set(batches)) > 3  # drawn anew, not one choice for all steps


def test_every_subset_is_as_likely_as_every_other():
    count = 6000
    seen = Counter(tuple(x.tolist()) for (x,) in positions(5, 2, steps_per_epoch=count, seed=3))
    assert set(seen) == set(itertools.combinations(range(5), 2))
    squares = sum((n - count / 10) ** 2 / (count / 10) for n in seen.values())
    assert squares < 27.9  # chi-square with 9 degrees of freedom: beyond it once in a thousand


def test_draws_are_fresh_whatever_the_global_seed():
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        drawn.append([x.tolist() for (x,) in positions()])
    assert drawn[0] != drawn[1]
    assert len({tuple(x) for x in drawn[0]}) == 4


def test_data_in_which_one_example_was_replaced_are_sampled_at_the_same_positions():
    data, other = torch.arange(80), torch.arange(80)
    other[7] = 1000
    one, two = (FixedSizeLoader(TensorDataset(x), batch_size=20, seed=1) for x in (data, other))
    assert one.event(1.0) == two.event(1.0) and len(one) == len(two)
    for (x,), (y,) in zip(one, two, strict=True):
        assert torch.equal(torch.where(x == 7, 1000, x), y)


@pytest.mark.parametrize("change", [{"batch_size": 0}, {"batch_size": 81}, {"batch_size": 2.5}, {"public_size": 100}])
def test_sizes_that_are_none_are_refused(change):
    with pytest.raises(ConfigurationError, match=next(iter(change))):
        positions(**{"batch_size": 20, **change})


# The cost


@pytest.mark.parametrize("sigma, batch_size", [(0.7, 10), (2.0, 50), (10.0, 500), (1.0, 1000)])
def test_a_run_costs_what_dp_accounting_says(sigma, batch_size):
    event = FixedSizeEvent(sigma, batch_size, 1000)
    theirs = RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    theirs.compose(to_dp_event([event] * 3))
    spent = Accountant(neighboring="replace_one").epsilon_after(event, 3, DELTA)
    assert 0.9 * theirs.get_epsilon(DELTA) <= spent <= theirs.get_epsilon(DELTA) * (1 + 1e-6)
    assert spent == fixed_size_epsilon(noise_multiplier=sigma, batch_size=batch_size, size=1000, steps=3, delta=DELTA)


@pytest.mark.parametrize("sigma", [0.5, 3.0, 20.0, 100.0])
@pytest.mark.parametrize("batch_size, order", [(1, 3), (100, 8), (500, 20), (999, 4)])
def test_a_divergence_is_not_below_its_theorem_in_exact_arithmetic(sigma, batch_size, order):
    """Theorem 27 of Wang, Balle, Kasiviswanathan 2019 cancels in doubles; here it has 250 digits."""
    from mpmath import binomial, exp, log, mp, mpf, sqrt

    with mp.workdps(250):
        square, q = mpf(sigma) ** 2, mpf(batch_size) / 1000

        def moment(k: int):
            """E (p / q - 1)^k for Gaussians one unit apart."""
            return sum((-1) ** (k - i) * binomial(k, i) * exp(mpf(i * (i - 1)) / 2 / square) for i in range(k + 1))

        total = 1 + q**2 * binomial(order, 2) * min(4 * (exp(1 / square) - 1), 2 * exp(1 / square))
        for k in range(3, order + 1):
            ternary = 4 * sqrt(moment(2 * (k // 2)) * moment(2 * ((k + 1) // 2)))
            total += q**k * binomial(order, k) * min(ternary, 2 * exp(mpf(k * (k - 1)) / 2 / square))
        exact = min(log(total) / (order - 1), mpf(order) / 2 / square)
        claimed = renyi_divergence(FixedSizeEvent(sigma, batch_size, 1000), float(order))
        assert exact * (1 - mpf(10) ** -15) <= claimed <= exact * (1 + mpf(10) ** -8)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("batch_size", [1, 10, 50])
def test_no_pair_of_neighbours_is_further_apart_than_is_charged(sigma, batch_size):
    """All others sum to a point; the example sits at one place of the ball or another (diameter 1 = two bounds)."""
    event, q = FixedSizeEvent(sigma, batch_size, 100), batch_size / 100
    x = np.linspace(-12 * sigma - 8, 12 * sigma + 8, 20_001)

    def log_density(shift: float) -> np.ndarray:
        def bell(m: float) -> np.ndarray:
            return -((x - m) ** 2) / 2 / sigma**2 - math.log(sigma * math.sqrt(2 * math.pi))

        return np.logaddexp(math.log(1 - q) + bell(0.0), math.log(q) + bell(shift))

    for order in (1.5, 2.0, 4.0, 8.0):
        for here in np.linspace(0, 1, 9):  # the two places, seen from the example that would be drawn instead
            p, other = log_density(here), log_density(here - 1)
            for a, b in ((p, other), (other, p)):
                integral = np.trapezoid(np.exp(order * a + (1 - order) * b), x)
                assert math.log(integral) / (order - 1) <= renyi_divergence(event, order) + 1e-12


def test_it_costs_more_than_poisson_batches_and_less_than_full_ones():
    sizes = {"batch_size": 50, "size": 1000}
    spent, poisson, full = (
        Accountant(neighboring=event.neighboring[0]).epsilon_after(event, 200, DELTA)
        for event in (FixedSizeEvent(2.0, **sizes), GaussianEvent(2.0, 0.05), GaussianEvent(2.0, 1.0))
    )
    assert 1.5 * poisson < spent < full


def test_events_of_both_kinds_survive_an_accountants_state():
    accountant = Accountant(neighboring="replace_one")
    accountant.count(FixedSizeEvent(2.0, 5, 100), 3)
    accountant.count(FixedSizeEvent(2.0, 5, 100))
    accountant.step(noise_multiplier=2.0, sample_rate=0.05)
    assert accountant.history == [(2.0, 5, 100, 4), (2.0, 0.05, 1)]
    again = Accountant()
    again.load_state_dict(json.loads(json.dumps(accountant.state_dict())))
    assert again.history == accountant.history and again.get_epsilon(DELTA) == accountant.get_epsilon(DELTA)


@pytest.mark.parametrize(
    "record", [{}, {"noise_multiplier": 1.0}, {"noise_multiplier": 1.0, "batch_size": 5, "rate": 1}]
)
def test_records_of_no_event_are_refused(record):
    with pytest.raises(ConfigurationError, match="event"):
        event_of(record)


@pytest.mark.parametrize("values", [(-1.0, 5, 10), (math.nan, 5, 10), (1.0, 11, 10), (1.0, 0, 10), (1.0, 2.5, 10)])
def test_events_that_are_none_are_refused(values):
    with pytest.raises(ConfigurationError):
        FixedSizeEvent(*values)


# A run


def test_a_run_charges_the_event_of_its_batches(tmp_path, runner):
    run = trainer(tmp_path)
    plan = run.plan()
    assert plan.event == FixedSizeEvent(plan.noise_multiplier, 20, 80)
    run.fit()
    record = Ledger.read(tmp_path / "ledger.jsonl")
    assert record.history() == [plan.event] * 16 and record.neighboring == "replace_one"
    spent = fixed_size_epsilon(noise_multiplier=plan.noise_multiplier, batch_size=20, size=80, steps=16, delta=DELTA)
    assert 3.9 < spent <= 4.0 and record.epsilon(DELTA) == run.get_epsilon() == plan.epsilon == spent
    privacy = read_report(tmp_path)["privacy"]
    assert (privacy["sampling"], privacy["epsilon"], privacy["sample_rate"]) == ("fixed_size", spent, 0.25)
    shown = runner("account", "--ledger", tmp_path / "ledger.jsonl")
    assert f"epsilon {spent:.6f}" in shown


@pytest.fixture
def runner():
    from typer.testing import CliRunner

    def run(*arguments) -> str:
        done = CliRunner().invoke(app, [str(a) for a in arguments])
        assert done.exit_code == 0, done.output
        return done.output

    return run


def test_the_noise_is_that_of_replacing_one_example():
    """Twice one example's bound, and more than Poisson batches need for the same budget."""
    fixed, poisson = trainer().plan(), trainer(sampling="poisson").plan()
    assert fixed.sensitivities.total == poisson.sensitivities.total
    assert fixed.noise_multiplier > 1.2 * poisson.noise_multiplier
    event = trainer().loader.event
    calibrated = get_noise_multiplier(
        target_epsilon=4.0, target_delta=DELTA, event=event, steps=16, neighboring="replace_one"
    )
    assert calibrated == fixed.noise_multiplier


@pytest.mark.parametrize(
    "change, named",
    [({"neighboring": "add_remove"}, "'replace_one'"), ({"accountant": "prv"}, "'rdp'"), ({"secure": True}, "poisson"),
     ({"accountant": "pld", "target_epsilon": None, "noise_multiplier": 1.0}, "'rdp'"),
     ({"sampling": "shuffle"}, "fixed_size"),
     ({"batch_size": 81}, "batch_size=81"), ({"public_size": 100}, "public_size=100")],
)  # fmt: skip
def test_what_no_theorem_covers_is_refused_before_anything_is_spent(change, named, tmp_path):
    with pytest.raises(ConfigurationError, match=named):
        trainer(tmp_path, **change).plan()
    assert not (tmp_path / "ledger.jsonl").exists()


def test_a_resumed_run_spends_what_an_undisturbed_one_spends(tmp_path):
    undisturbed = trainer().fit()
    interrupted(trainer(tmp_path, checkpoint_every=3), 7)
    resumed = trainer(tmp_path, checkpoint_every=3).fit(resume=True)
    assert resumed.accountant.history == undisturbed.accountant.history
    assert resumed.get_epsilon() == undisturbed.get_epsilon() == Ledger.read(tmp_path / "ledger.jsonl").epsilon()


def test_a_torn_line_counts_as_a_step_of_the_run(tmp_path):
    run = interrupted(trainer(tmp_path), 7)
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    trainer(tmp_path).fit(resume=True)
    assert Ledger.read(path).history() == [run.optimizer.event] * 16


def test_a_run_does_not_go_on_with_another_sampling(tmp_path):
    sigma = interrupted(trainer(tmp_path), 7).optimizer.noise_multiplier
    with pytest.raises(LedgerError, match="sampling"):
        trainer(tmp_path, sampling="poisson", target_epsilon=None, noise_multiplier=sigma).fit(resume=True)


@pytest.mark.parametrize("neighboring, second", [("add_remove", None), ("replace_one", GaussianEvent(1.0, 0.25))])
def test_a_ledger_whose_lines_no_theorem_covers_is_refused_at_the_line(tmp_path, neighboring, second):
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, neighboring=neighboring, delta=DELTA) as ledger:
        ledger.append(FixedSizeEvent(1.0, 20, 80))
        if second is not None:
            ledger.append(second)
    with pytest.raises(LedgerError, match=f"line {2 if second is None else 3}.*do not belong"):
        Ledger.read(path)
