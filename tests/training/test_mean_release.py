"""The private mean: what it adds, what it costs, and that a crash neither repeats nor hides it."""

import json
import math

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import dplip
from dplip import nn as dn
from dplip.accounting import Accountant, GaussianEvent, get_noise_multiplier
from dplip.audit.finished_run import audit_run
from dplip.records import Ledger, read_report
from dplip.runtime.group import Group
from dplip.training.mean_release import mean_release


class Silent(dplip.noise.GaussianNoise):
    """Adds nothing, and remembers the deviations it was asked for."""

    def __init__(self):
        super().__init__()
        self.stds = []

    def add_(self, tensor, std):
        self.stds.append(std)
        return tensor


def model(radius=2.0, sigma=20.0):
    return nn.Sequential(
        dn.Shift(0.5), dn.PrivateMean((6,), 3.0, sigma), dn.BallProjection(radius), dn.OrthogonalLinear(6, 3)
    )


def data(n=200, seed=0):
    g = torch.Generator().manual_seed(seed)
    return TensorDataset(1.5 + 0.3 * torch.randn(n, 6, generator=g), torch.randint(0, 3, (n,), generator=g))


def trainer(net=None, dataset=None, **arguments):
    net = model() if net is None else net
    given = {"target_epsilon": 2.0, "batch_size": 50, "epochs": 2, "progress": False, "seed": 0}
    return dplip.DPLipTrainer(
        net,
        loss=dplip.losses.CrossEntropy(2.0),
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        train_dataset=data() if dataset is None else dataset,
        **{**given, **arguments},
    )


def released(dataset, sigma=20.0, apart=1.0, net=None):
    release, noise = mean_release(model(sigma=sigma) if net is None else net, (6,)), Silent()
    release.run(dataset, noise, apart, 200, Group())
    return release.layer.mean.double() * 200, noise.stds


def test_sum_and_deviation():
    x = data().tensors[0]
    inside = (x - 0.5) * (3 / (x - 0.5).norm(dim=1, keepdim=True)).clamp(max=1)
    total, stds = released(data())
    torch.testing.assert_close(total, inside.double().sum(0), rtol=1e-5, atol=1e-3)
    assert len(stds) == 1 and 60 <= stds[0] <= 60 * (1 + 1e-4)
    assert 120 <= released(data(), apart=2.0)[1][0] <= 120 * (1 + 1e-4)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e30, math.inf, math.nan])
def test_one_example_moves_the_sum_by_no_more_than_the_radius(size):
    full = data()
    x, y = full.tensors
    x = x.clone()
    x[77] = size
    whole, _ = released(TensorDataset(x, y))
    keep = torch.arange(len(x)) != 77
    less, _ = released(TensorDataset(x[keep], y[keep]))
    moved = (whole - less).norm()
    assert moved <= 3.0 * (1 + 1e-4)
    if size == 1e30:
        assert moved >= 3.0 * (1 - 1e-4)  # the bound is attained


def test_the_release_is_charged_and_fits_the_budget():
    run = trainer()
    plan = run.plan()
    assert plan.epsilon <= 2.0 and plan.steps == 8
    run.fit()
    assert run.accountant.num_steps == 9 and run.accountant.history[0] == (20.0, 1.0, 1)
    held = Accountant()
    held.count(GaussianEvent(20.0, 1.0))
    held.count(GaussianEvent(plan.noise_multiplier, 0.25), 8)
    assert run.get_epsilon() == held.get_epsilon(1e-5) == pytest.approx(plan.epsilon)
    assert 1.9 < run.get_epsilon() <= 2.0
    assert run.model[1].mean.norm() > 1  # of inputs near 1
    report = run.report()["privacy"]
    assert report["steps"] == 8 and report["releases"] == [{"noise_multiplier": 20.0, "sample_rate": 1.0}]
    with pytest.raises(dplip.BudgetExceededError):
        run.fit()


def test_the_noise_of_the_steps_pays_for_the_release():
    plain = get_noise_multiplier(target_epsilon=2.0, target_delta=1e-5, sample_rate=0.25, steps=8)
    paying = get_noise_multiplier(
        target_epsilon=2.0, target_delta=1e-5, sample_rate=0.25, steps=8, before=[GaussianEvent(5.0, 1.0)]
    )
    assert paying > plain
    with pytest.raises(dplip.ConfigurationError, match="target_epsilon"):
        get_noise_multiplier(
            target_epsilon=0.1, target_delta=1e-5, sample_rate=0.25, steps=8, before=[GaussianEvent(1.0, 1.0)]
        )


def test_replacing_one_costs_twice_the_sensitivity():
    run = trainer(neighboring="replace_one", sampling="fixed_size", noise_multiplier=20.0, target_epsilon=None)
    run.fit()
    assert run.accountant.history[0] == (20.0, 200, 200, 1)
    assert run.accountant.num_steps == 9
    asked = Silent()
    run._mean.run(run.loader.dataset, asked, 2.0, 200, Group())
    assert asked.stds[0] >= 2 * 20.0 * 3.0


def test_the_noise_is_there():
    """Fresh noise of the declared size: over many releases the mean differs by sigma radius / n."""
    found = []
    for seed in range(40):
        net = model(sigma=50.0)
        run = trainer(net, noise_multiplier=1.0, target_epsilon=None, seed=seed)
        run._run.release_mean()
        found.append(net[1].mean.double())
    spread = torch.stack(found).std(0).square().mean().sqrt() / (50.0 * 3.0 / 200)
    assert 0.85 < spread < 1.15


def test_resuming_neither_repeats_nor_forgets_it(tmp_path):
    class Stop(Exception):
        pass

    run = trainer(output_dir=tmp_path, checkpoint_every=1)
    taken = run.optimizer.original.step

    def stop():
        if run._run.done >= 3:
            raise Stop
        taken()

    run.optimizer.original.step, run.optimizer._trusted = stop, True
    with pytest.raises(Stop):
        run.fit()
    mean = run.model[1].mean.clone()
    again = trainer(output_dir=tmp_path, checkpoint_every=1)
    again.optimizer._trusted = True  # as the run that is resumed
    again.fit(resume=True)
    assert torch.equal(again.model[1].mean, mean)
    record = Ledger.read(tmp_path / "ledger.jsonl")
    assert len(record.events) == 9
    assert [e for e in record.events if e.sample_rate == 1] == [GaussianEvent(20.0, 1.0)] == list(record.events[:1])
    assert json.loads((tmp_path / "report.json").read_text())["privacy"]["epsilon"] == record.epsilon() <= 2.0


def test_a_crash_between_the_ledger_and_the_release_leaves_it_spent(tmp_path, monkeypatch):
    run = trainer(output_dir=tmp_path)
    monkeypatch.setattr("dplip.training.mean_release.MeanRelease.run", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.fit()
    again = trainer(output_dir=tmp_path)
    again.fit(resume=True)  # the release is not tried again: it would be paid twice
    assert again.model[1].mean.norm() == 0
    assert Ledger.read(tmp_path / "ledger.jsonl").epsilon() == again.get_epsilon() <= 2.0
    assert again.accountant.num_steps == 9


def test_a_budget_without_room_for_it_is_refused():
    with pytest.raises(dplip.ConfigurationError, match="target_epsilon"):
        trainer(model(sigma=0.5), target_epsilon=1.0)


def test_behind_a_front_end_that_runs_once():
    net = model()
    run = trainer(net, precompute=True, eval_dataset=data(seed=1))
    run.fit()
    assert net[1].mean.norm() > 1 and 0 <= run.evaluate()["accuracy"] <= 1
    assert run.certified_accuracy((0.0, 0.1))[1] <= run.certified_accuracy((0.0,))[0]


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(
            dn.BallProjection(1.0), nn.Linear(6, 6), dn.PrivateMean((6,), 1.0), dn.BallProjection(1.0), nn.Linear(6, 3)
        ),
        nn.Sequential(dn.PrivateMean((6,), 1.0), dn.PrivateMean((6,), 1.0), dn.BallProjection(1.0), nn.Linear(6, 3)),
        nn.Sequential(nn.Sequential(dn.PrivateMean((6,), 1.0)), dn.BallProjection(1.0), nn.Linear(6, 3)),
    ],
    ids=["behind a trained layer", "two", "inside another"],
)
def test_what_is_not_understood_is_refused(net):
    with pytest.raises(dplip.ConfigurationError, match="PrivateMean"):
        trainer(net)


def test_without_a_ball_the_input_is_unbounded():
    net = nn.Sequential(dn.BallProjection(1.0), dn.PrivateMean((6,), 1.0), nn.Linear(6, 3))
    with pytest.raises(dplip.UnboundedInputError):
        trainer(net)


def test_a_run_with_a_release_passes_its_audit(tmp_path):
    run = trainer(output_dir=tmp_path, seed=None).fit()
    rows = audit_run(tmp_path, read_report(tmp_path), run.model, run.loss, data(), (6,), canaries=200, starts=2)
    assert rows and all(row.survived for row in rows), rows


def test_secure_noise_covers_it():
    pytest.importorskip("opendp")
    run = trainer(secure=True, seed=None)
    run.fit()
    assert run.accountant.history[0] == (20.0, 1.0, 1) and run.model[1].mean.norm() > 1
