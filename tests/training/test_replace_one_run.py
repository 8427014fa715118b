"""Runs under replacing one example: plan, ledger, report and command line charge the relation."""

import json

import pytest
import torch
from helpers.epsilons import DELTA
from helpers.models import orthogonal
from helpers.runs import examples
from typer.testing import CliRunner

from dplip import DPLipTrainer, PrivacyEngine
from dplip.accounting import Accountant, GaussianEvent
from dplip.cli.app import app
from dplip.errors import ConfigurationError
from dplip.losses import CrossEntropy

# One accountant, one relation


def parts(batch_size=20, **arguments):
    model = orthogonal()
    return {
        "model": model,
        "loss": CrossEntropy(8.0),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "train_dataset": examples(80),
        "batch_size": batch_size,
        "neighboring": "replace_one",
        "progress": False,
        **({"noise_multiplier": 2.0} | arguments),
    }


def made(engine, neighboring, **arguments):
    given = parts()
    return engine.make_private(
        module=given["model"],
        optimizer=given["optimizer"],
        data_loader=torch.utils.data.DataLoader(given["train_dataset"], batch_size=20, shuffle=True),
        criterion=given["loss"],
        noise_multiplier=2.0,
        neighboring=neighboring,
        **arguments,
    )


@pytest.mark.parametrize("accountant", ["prv", "pld"])
def test_accountants_without_a_theorem_are_refused_but_for_full_batches(accountant):
    assert DPLipTrainer(**parts(80), accountant=accountant).plan().epsilon > 0
    with pytest.raises(ConfigurationError, match=r"no theorem for poisson batches under 'replace_one'.*\['rdp'\]"):
        DPLipTrainer(**parts(), accountant=accountant).plan()
    with pytest.raises(ConfigurationError, match="no theorem"):
        made(PrivacyEngine(accountant), "replace_one")


def test_plan_run_ledger_report_and_command_line_charge_the_relation(tmp_path):
    trainer = DPLipTrainer(**parts(noise_multiplier=None, target_epsilon=3.0, epochs=2), output_dir=tmp_path)
    planned = trainer.plan()
    expected = Accountant("rdp", "replace_one").epsilon_after(planned.event, planned.steps, DELTA)
    assert planned.epsilon == expected == pytest.approx(3.0, abs=0.03)
    assert expected < Accountant("rdp").epsilon_after(planned.event, planned.steps, DELTA)
    trainer.fit()
    report = json.loads((tmp_path / "report.json").read_text())["privacy"]
    assert report["epsilon"] == pytest.approx(expected)
    numbers = ["--noise-multiplier", str(planned.noise_multiplier), "--sample-rate", "0.25", "--steps", "8"]
    for words in (["--ledger", str(tmp_path / "ledger.jsonl")], [*numbers, "--neighboring", "replace_one"]):
        assert f"epsilon {expected:.6f}" in CliRunner().invoke(app, ["account", *words]).output


def test_an_engine_is_for_one_relation():
    engine = PrivacyEngine()
    made(engine, "add_remove")  # no step is needed: its optimizer may take one at any time
    with pytest.raises(ConfigurationError, match=r"neighboring='replace_one'.*'add_remove'.*a new PrivacyEngine"):
        made(engine, "replace_one")
    made(engine, "add_remove")
    again = PrivacyEngine()
    with pytest.raises(ConfigurationError, match="choose one of"):
        made(again, "remove_one")
    made(again, "replace_one")  # what was refused has decided nothing
    with pytest.raises(ConfigurationError, match="neighboring='add_remove'"):
        made(again, "add_remove")


def test_a_state_keeps_its_relation():
    engine = PrivacyEngine()
    made(engine, "replace_one")
    engine.charge(GaussianEvent(2.0, 0.25))
    state = json.loads(json.dumps(engine.accountant.state_dict()))
    assert state["neighboring"] == "replace_one"
    other = PrivacyEngine()
    other.accountant.load_state_dict(state)
    assert other.get_epsilon(DELTA) == engine.get_epsilon(DELTA)
    with pytest.raises(ConfigurationError, match="'replace_one'"):
        made(other, "add_remove")
    opacus = {"mechanism": "rdp", "history": [(2.0, 0.25, 1)]}  # which is for add/remove
    for accountant in (Accountant("rdp", "replace_one"), engine.accountant):
        with pytest.raises(ConfigurationError, match="neighboring='add_remove'"):
            accountant.load_state_dict(opacus)
    third = PrivacyEngine()
    third.accountant.load_state_dict(opacus)
    with pytest.raises(ConfigurationError, match="neighboring='replace_one'"):
        made(third, "replace_one")
    with pytest.raises(ConfigurationError, match="choose one of"):
        Accountant().load_state_dict({**opacus, "neighboring": ["replace_one"]})
