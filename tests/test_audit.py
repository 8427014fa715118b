"""The audits: sound runs survive them, broken ones do not, and what they report is a lower bound with power."""

import copy
import json
import math
import shutil

import numpy as np
import pytest
import torch
from small_models import built
from small_runs import examples
from torch.utils.data import Subset
from typer.testing import CliRunner

import dplip
from dplip import audit
from dplip.audit.finished_run import _ledger as ledger_row
from dplip.audit.statistics import best_threshold
from dplip.cli.app import app
from dplip.data import load
from dplip.errors import ConfigurationError
from dplip.losses import CrossEntropy, Huber
from dplip.models import preset
from dplip.noise import GaussianNoise

torch.set_num_threads(1)

SIGMA = {1.0: 3.7306, 4.0: 1.0812, 8.0: 0.60024}
"""Of a full-batch Gaussian whose exact epsilon at delta 1e-5 is the key."""

FLOORS = {1.0: 0.6, 4.0: 3.3, 8.0: 7.0}


# The search for a long gradient


@pytest.mark.parametrize("name", ["orthogonal", "plain", "convolutional", "residual", "tied", "clamped", "tokens"])
def test_the_search_finds_long_gradients_and_none_beyond_the_declared(name):
    model, shape = built(name, seed=1)
    found = audit.gradient_search(model, CrossEntropy(16.0), shape, starts=8, steps=6)
    assert not found.violated
    least = {"orthogonal": 0.999, "plain": 0.6, "residual": 0.35, "clamped": 0.5, "tokens": 0.4}.get(name, 0.05)
    assert min(found.tightness.values()) >= least
    assert found.total <= found.declared.total


def test_the_search_finds_more_than_a_bound_that_is_a_hundredth_too_small(monkeypatch):
    from dplip.audit import gradient
    from dplip.sensitivities import Sensitivities, sensitivity

    def small(*arguments):
        return Sensitivities({n: 0.99 * b for n, b in sensitivity(*arguments).items()})

    monkeypatch.setattr(gradient, "sensitivity", small)
    model, shape = built("orthogonal")
    found = audit.gradient_search(model, CrossEntropy(16.0), shape, starts=6, steps=4)
    assert found.violated and max(found.tightness.values()) > 1


def test_the_search_starts_from_data_and_leaves_model_and_loss_as_they_were():
    model, shape = built("plain")
    loss, before = CrossEntropy(), copy.deepcopy(model.state_dict())
    loss.witness = witness = object()
    found = audit.gradient_search(model, loss, shape, examples(5), starts=3, steps=2)
    x, y = found.worst
    assert x.shape == shape and y.ndim == 0 and found.tried > 20
    assert loss.witness is witness
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_search_knows_regressions_and_models_of_one_output():
    for loss in (Huber(), dplip.losses.BinaryCrossEntropy(16.0), dplip.losses.Hinge()):
        model, shape = built("plain")
        model = model[:-1].append(torch.nn.Linear(8, 1))
        found = audit.gradient_search(model, loss, shape, starts=4, steps=3)
        assert not found.violated and found.tightness["3.bias"] > 0.99


# Replay


@pytest.mark.parametrize("name", ["orthogonal", "plain", "convolutional", "residual", "tied"])
@pytest.mark.parametrize("neighboring, most", [("add_remove", None), ("replace_one", 3)])
def test_neighbouring_steps_differ_within_the_sensitivity_and_in_nothing_else(name, neighboring, most):
    model, shape = built(name)
    x = torch.randn(30, *shape, generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.TensorDataset(x, torch.arange(30) % 4)
    moved = audit.replay(
        model,
        CrossEntropy(8.0),
        data,
        example=(torch.full(shape, 1e6), torch.tensor(0)),
        input_shape=shape,
        neighboring=neighboring,
        max_physical_batch_size=most,
        steps=6,
    )
    assert not moved.violated and moved.differing >= 2
    assert 0 < moved.joint <= 1


def test_replay_sees_that_a_batch_is_divided_by_its_own_size(monkeypatch):
    from dplip.training import DPLipOptimizer

    monkeypatch.setattr(DPLipOptimizer, "_check_constants", lambda self: None)
    monkeypatch.setattr(
        DPLipOptimizer, "expected_batch_size", property(lambda self: max(1.0, self.batches.expected_batch_size) + 1)
    )
    model, shape = built("plain")
    moved = audit.replay(model, CrossEntropy(), examples(), input_shape=shape, steps=3)
    assert moved.violated and "not the noisy sum" in moved.problems[0]


# Canaries


@pytest.mark.parametrize("epsilon", FLOORS)
def test_dirac_canaries_show_nearly_all_of_epsilon_and_never_more(epsilon):
    model, shape = built("orthogonal")
    found = [
        audit.audit_noise(model, CrossEntropy(), shape, noise_multiplier=SIGMA[epsilon], noise=GaussianNoise(k), seed=k)
        for k in range(3)
    ]
    assert audit.gaussian_epsilon(1 / SIGMA[epsilon], 1e-5) == pytest.approx(epsilon, rel=1e-3)
    assert all(one.lower <= epsilon <= one.accounted and not one.violated for one in found)
    middle = sorted(found, key=lambda one: one.lower)[1]
    assert middle.canaries == 10_000 and middle.lower >= FLOORS[epsilon] and middle.powerful


@pytest.mark.parametrize("neighboring", ["add_remove", "replace_one"])
def test_half_the_noise_is_shown_to_be_too_little(neighboring):
    class Half(GaussianNoise):
        def add_(self, tensor, std):
            return super().add_(tensor, std / 2)

    model, shape = built("plain")
    arguments = {"noise_multiplier": 1.08, "neighboring": neighboring, "canaries": 1000}
    assert audit.audit_noise(model, CrossEntropy(), shape, noise=Half(1), **arguments).violated
    assert not audit.audit_noise(model, CrossEntropy(), shape, noise=GaussianNoise(1), **arguments).violated


def test_without_noise_there_is_nothing_to_audit():
    model, shape = built("plain")
    with pytest.raises(ConfigurationError, match=r"noise_multiplier=0\.0"):
        audit.audit_noise(model, CrossEntropy(), shape, noise_multiplier=0.0)


def test_one_run_with_canaries_in_the_data_shows_a_part_of_epsilon():
    data, recipe = load("digits"), preset("digits")
    torch.manual_seed(0)
    model = recipe.model(data.input_shape, 10)
    found = audit.one_run(
        model,
        recipe.loss(),
        Subset(data.train, range(200)),
        input_shape=data.input_shape,
        noise_multiplier=3.0,
        sample_rate=1.0,
        steps=20,
        canaries=640,
        floor=1.0,
        seed=0,
    )
    assert 7 < found.accounted < 8
    assert found.powerful and not found.violated


# Statistics


def test_gaussian_epsilon_is_exact():
    from dp_accounting.pld import privacy_loss_distribution

    for mu in (0.268, 0.925, 1.666, 5.0):
        pld = privacy_loss_distribution.from_gaussian_mechanism(1 / mu, value_discretization_interval=1e-4)
        assert audit.gaussian_epsilon(mu, 1e-5) == pytest.approx(pld.get_epsilon_for_delta(1e-5), abs=2e-4)
    assert audit.gaussian_epsilon(0.0, 1e-5) == audit.gaussian_epsilon(-1.0, 1e-5) == 0.0
    assert math.isfinite(audit.gaussian_epsilon(100.0, 1e-5))


def test_the_bound_from_canaries_holds_as_often_as_it_says_and_is_not_idle():
    generator = np.random.default_rng(0)
    mu, count = 0.925, 500
    threshold, shown = best_threshold(mu, count)
    true = audit.gaussian_epsilon(mu, 1e-5)
    lower = [
        audit.canary_epsilon(generator.normal(mu, 1, count), generator.normal(0, 1, count), 1e-5, threshold)
        for _ in range(400)
    ]
    assert np.mean(np.array(lower) > true) <= 0.05
    assert np.median(lower) == pytest.approx(audit.gaussian_epsilon(shown, 1e-5), rel=0.1)


def test_the_bound_from_one_run_holds_for_randomized_response_and_is_not_idle():
    """Randomized response guesses each coin right with probability q = e^eps / (1 + e^eps), on its own."""
    generator = np.random.default_rng(0)
    for epsilon in (0.5, 2.0):
        q = 1 / (1 + math.exp(-epsilon))
        counts, often = np.unique(generator.binomial(400, q, size=1000), return_counts=True)
        lower = np.repeat([audit.one_run_epsilon(int(c), 400, 400, 1e-6) for c in counts], often)
        assert np.mean(lower > epsilon) <= 0.05 + 0.02  # three standard errors
        assert np.median(lower) > 0.5 * epsilon


def test_published_values_of_the_one_run_bound_of_a_gaussian():
    """1e4 canaries at mu of epsilon 4, of which 3% are guessed: 2.14 in the median of 12 runs."""
    generator = np.random.default_rng(1)
    lower = []
    for _ in range(9):
        present = generator.random(10_000) < 0.5
        scores = generator.normal(0.9249 * present, 1.0)
        order = np.argsort(scores)
        right = int(present[order[-150:]].sum() + (~present[order[:150]]).sum())
        lower.append(audit.one_run_epsilon(right, 300, 10_000, 1e-5))
    assert np.median(lower) == pytest.approx(2.14, abs=0.25)


def test_nonsensical_counts_are_refused():
    with pytest.raises(ConfigurationError, match="correct=3"):
        audit.one_run_epsilon(3, 2, 10, 1e-5)
    with pytest.raises(ConfigurationError, match="0 canaries present"):
        audit.canary_epsilon([], [1.0], 1e-5, 0.0)


# A finished run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    done = CliRunner().invoke(
        app, ["train", "--out", str(folder), "--epochs", "3", "--no-progress"], catch_exceptions=False
    )
    assert done.exit_code == 0
    return folder


def test_a_finished_run_survives_its_audit(finished):
    done = CliRunner().invoke(
        app, ["audit", str(finished), "--canaries", "2000", "--starts", "4"], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0].split() == ["promise", "tried", "bound", "found", "survived"]
    assert len(lines) >= 8 and all(line.endswith("yes") for line in lines[1:])


@pytest.mark.parametrize("field, value", [("epsilon", 1.0), ("neighboring", "replace_one"), ("steps", 2)])
def test_a_report_that_claims_less_than_its_ledger_is_seen(finished, field, value):
    privacy = json.loads((finished / "report.json").read_text())["privacy"]
    assert ledger_row(finished, privacy).survived
    row = ledger_row(finished, {**privacy, field: value})
    assert not row.survived and "something else" in row.note


def test_the_command_fails_when_a_promise_does_not_survive(finished, tmp_path):
    for name in ("report.json", "model.pt", "ledger.jsonl"):
        shutil.copy(finished / name, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    report["privacy"]["epsilon"] = 1.0
    (tmp_path / "report.json").write_text(json.dumps(report))
    done = CliRunner().invoke(
        app, ["audit", str(tmp_path), "--canaries", "200", "--starts", "2"], catch_exceptions=False
    )
    assert done.exit_code == 1
    assert "NO  (the ledger shows something else than the report says)" in done.output
