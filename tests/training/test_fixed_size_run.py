"""Runs on batches of a fixed size: what they charge, record, refuse and resume."""

import pytest
import torch
from helpers.epsilons import DELTA
from helpers.models import orthogonal
from helpers.runs import TRAIN, interrupted

from dplip import DPLipTrainer
from dplip.accounting import (
    FixedSizeEvent,
    GaussianEvent,
    fixed_size_epsilon,
    get_noise_multiplier,
)
from dplip.cli.app import app
from dplip.errors import ConfigurationError, LedgerError
from dplip.losses import CrossEntropy
from dplip.records import Ledger, read_report


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
