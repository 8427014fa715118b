"""The benchmark suite runs, says what failed, and its counts and loose ratios are as they must be."""

import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def suite(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import suite

    return suite


@pytest.fixture
def inside(suite, monkeypatch):
    """Workers of this process: others take seconds to start."""
    from steps import METHODS, Case

    def start(worker, method, case, threads):
        worker.times, worker.spent, worker.failure = [], 0.0, None
        worker.step = METHODS[method](Case(**case))

    def ask(worker, question="end"):
        return suite.answer(worker.step, question)

    monkeypatch.setattr(suite.Worker, "__init__", start)
    monkeypatch.setattr(suite.Worker, "_ask", ask)
    monkeypatch.setattr(suite.Worker, "end", ask)


def test_a_gradient_per_example_costs_many_times_as_much(suite):
    methods = ("plain", "dplip", "hooks")
    rows = list(suite.compare(suite.case("mlp", 64), 1, methods, rounds=3, seconds=5.0))
    plain, ours, hooks = rows
    assert [row["method"] for row in rows] == list(methods) and plain["ratio"] == 1 and ours["rounds"] == 3
    assert hooks["ratio"] > 2 * ours["ratio"]  # 20 times, on an idle machine
    assert hooks["memory_mb"] > ours["memory_mb"] + 50
    assert ours["memory_mb"] < 1.2 * plain["memory_mb"]


def test_the_command_writes_json_and_markdown(suite, inside, tmp_path, capsys):
    path = tmp_path / "suite.json"
    result = suite.main(
        ["--short", "--parts", "profile", "--json", str(path), "--markdown", str(tmp_path / "suite.md")]
    )
    assert json.loads(path.read_text()) == result
    operations = {r["operation"] for r in result["parts"]["profile"] if r["method"] == "dplip"}
    assert {"aten::mm", "aten::add_"} <= operations  # the network, and noise that another thread made
    assert (tmp_path / "suite.md").read_text() in capsys.readouterr().out


def test_step_time_prints_the_pair_of_steps_as_json(suite, inside, capsys):
    import step_time

    step_time.main(["--json", "-", "--batches", "32", "--models", "mlp", "--rounds", "2"])
    rows = json.loads(capsys.readouterr().out)["parts"]["steps"]
    assert [row["method"] for row in rows] == ["plain", "dplip"] and rows[0]["batch"] == 32 and rows[1]["ratio"] > 0


def test_a_method_that_fails_is_a_row_that_says_why(suite):
    (row,) = suite.compare(suite.case("mlp", 8, width=-8), 1, ("plain",), rounds=2, seconds=1.0)
    assert "negative" in row["failure"] and "failed: " in suite.line(row)


@pytest.mark.parametrize("name", ["mlp", "cnn", "tanh"])
def test_physical_batches_take_the_step_of_the_whole_batch(suite, name):
    import torch
    from steps import SHAPES, Case, private

    # Whatever the parts, one step is taken, counted and noised once, by the batch's own size.
    for physical in (None, 5):
        step = private(Case(name, 16, 8, physical=physical))
        step()
    assert Case(name, 16, 8).network()(torch.zeros(2, *SHAPES[name])).shape == (2, 10)
