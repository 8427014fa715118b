"""The examples of examples/models/ run end to end, on a few examples each, and say what they found."""

import importlib
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import default_collate

import dplip

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "models"
QUICK = ["--limit", "48", "--epochs", "1", "--epsilon", "8"]
NEEDS_AN_EXTRA = {"lora": "peft", "catalogue": "transformers"}
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("beside", "shipped_text", "catalogue"))


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    text = importlib.import_module("shipped_text")
    monkeypatch.setattr(text, "FILES", 4)
    text.definitions.cache_clear()
    yield importlib.import_module
    text.definitions.cache_clear()


def row(output: str, library: str) -> list[str]:
    """The cells of a library's row in the table that an example prints."""
    (line,) = re.findall(rf"^\| {library} \|(.*)\|$", output, re.MULTILINE)
    return [cell.strip() for cell in line.split("|")]


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in NEEDS_AN_EXTRA])
def test_an_example_prints_what_both_libraries_reached(script, monkeypatch, capsys, name):
    monkeypatch.setattr(sys, "argv", [name, *QUICK])
    script(name).main()
    printed = capsys.readouterr().out
    result, epsilon, rate, seconds = row(printed, "dplip")
    assert "loss" in result and 0 < float(epsilon) <= 8 and float(rate) > 0 and float(seconds) > 0
    other, *spent = row(printed, "Opacus")
    assert "loss" in other or re.match(r"does not train it: \w+Error: .", other)
    assert not spent[0] or float(spent[0]) <= 8


@pytest.mark.parametrize("name", NEEDS_AN_EXTRA)
def test_an_example_with_an_extra_runs_or_names_it(script, monkeypatch, capsys, name):
    monkeypatch.setattr(sys, "argv", [name, *(QUICK if name == "lora" else ["--only", "BERT"])])
    if find_spec(NEEDS_AN_EXTRA[name]) is None:
        with pytest.raises(SystemExit, match="pip install"):
            script(name).main()
        return
    script(name).main()
    printed = capsys.readouterr().out
    assert re.search(r"dplip: 4 of 4 adapters moved" if name == "lora" else r"BERT \| .*\| trains", printed)


def test_rates_are_chosen_with_one_budget_of_tries_for_both(script, monkeypatch):
    beside, mnist = script("beside"), script("mnist_cnn")
    tried: list[tuple[str, float]] = []

    def train(library):
        def fake(task, rate, epsilon, epochs):
            tried.append((library, rate))
            model = mnist.cnn((1, 8, 8))
            model.rate = rate
            return model, 1.0

        return fake

    monkeypatch.setattr(beside, "LIBRARIES", {name: train(name) for name in ("dplip", "Opacus")})
    # By accuracy where there is one, or else by loss.
    accuracies, losses = {0.01: 0.3, 0.02: 0.5, 0.03: 0.4}, {0.01: 2.0, 0.02: 0.9, 0.03: 1.0}
    for found in ("accuracy", "loss"):
        tried.clear()
        figures = {"accuracy": accuracies, "loss": losses}[found]
        loss = {"loss": 0.0} if found == "accuracy" else {}

        def judged(task, model, data, found=found, figures=figures, loss=loss):
            return {**loss, found: figures[model.rate]}

        monkeypatch.setattr(beside, "judged", judged)
        monkeypatch.setattr(sys, "argv", ["mnist_cnn", *QUICK, "--lr", "0.01", "0.02", "0.03", "--seeds", "2"])
        mnist.main()
        assert tried == [(library, rate) for library in ("dplip", "Opacus") for rate in (0.01, 0.02, 0.03, 0.02, 0.02)]


def test_initial_weights_are_the_same_and_noise_is_not(script):
    beside, mnist = script("beside"), script("mnist_cnn")
    data = torch.utils.data.TensorDataset(torch.rand(48, 1, 8, 8), torch.arange(48) % 10)
    task = beside.Task(lambda: mnist.cnn((1, 8, 8)), data, data, beside.dplip.losses.CrossEntropy(), 16)
    first, second = task.fresh(), task.fresh()
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))
    for train in beside.LIBRARIES.values():
        (one, _), (other, _) = (train(task, 0.01, 8.0, 1) for _ in range(2))
        assert not any(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def test_text_is_of_four_libraries_and_the_same_at_each_time(script):
    text = script("shipped_text")
    rows, labels = text.sentences(8)
    assert set(labels) == {0, 1, 2, 3} and all(3 <= len(r) <= 8 and 0 < min(r) and max(r) < text.WORDS for r in rows)
    text.definitions.cache_clear()
    assert text.sentences(8) == (rows, labels)
    letters, of_library = text.names(12)
    assert {len(r) for r in letters} == {12} and len(letters) == len(of_library)


# Not vae: neighbours draw their noise in another order.
@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in (*NEEDS_AN_EXTRA, "vae")])
def test_neighbouring_sums_lie_within_the_sensitivity_over_a_run(script, monkeypatch, name):
    """At each step of a private run, leaving one example out moves the sum by at most the sensitivity."""
    module, captured = script(name), []
    monkeypatch.setattr(module, "beside", lambda task, arguments: captured.append(task))
    monkeypatch.setattr(sys, "argv", [name, *QUICK])
    module.main()
    task: Any = captured[0]
    data = [task.train[i] for i in range(24)]
    collate = default_collate if task.collate is None else task.collate
    model = dplip.nn.bound_gradients(task.fresh().train())
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0  # or else neighbours draw other masks
    model, optimizer, loader = dplip.PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=torch.utils.data.DataLoader(data, 8, collate_fn=task.collate),  # type: ignore[arg-type]
        criterion=task.loss,
        noise_multiplier=1.0,
    )

    def summed(items: Any) -> dict[str, torch.Tensor]:
        optimizer.zero_grad()
        task.loss(*task.call(model, collate(items))).backward()
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        optimizer.zero_grad()
        return found

    most = 0.0
    for _ in range(3):
        whole, bounds = summed(data[:9]), optimizer.sensitivities()
        for left in (0, 4, 8):
            rest = summed(data[:left] + data[left + 1 : 9])
            most = max(most, *(float((whole[n] - rest[n]).norm()) / bound for n, bound in bounds.items()))
        for batch in loader:
            optimizer.zero_grad()
            task.loss(*task.call(model, batch)).backward()
            optimizer.step()
            break
    assert 0.1 < most <= 1
