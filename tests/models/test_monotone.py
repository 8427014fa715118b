"""Presets of tables: bounded, monotone, and with a small sensitivity."""

import math

import pandas as pd
import pytest
import torch
from helpers.tables import SCHEMA, frame

import dplip
from dplip.data import Column, Schema, encode, load_table
from dplip.data.tables import with_scaled_target
from dplip.models import TabularPreset, tabular_preset


@torch.no_grad()
def at_the_edge(model: torch.nn.Module) -> None:
    """Weights and biases as large as huge noise makes them."""
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        if p.requires_grad:
            p.add_(100 * torch.randn(p.shape, generator=generator))
    dplip.project(model)


@pytest.mark.parametrize("chain", ["inf", "one", "two"])
def test_every_chain_of_a_preset_is_bounded_and_monotone(chain):
    torch.manual_seed(0)
    recipe = TabularPreset(chain, (8, 6), 8.0, lr=0.01, batch_size=64, epochs=1)
    model = recipe.model(SCHEMA)
    assert dplip.certify_monotonic(model, SCHEMA.directions).margin > 0
    at_the_edge(model)
    bounds = dplip.sensitivity(model, recipe.loss(SCHEMA), (len(SCHEMA.features),))
    # The public worst case: three numbers of at most 1/2, a category and a flag.
    l2 = math.sqrt(3 / 4 + 2)
    first = bounds["1.module.0.weight"]
    assert first == pytest.approx(l2, rel=1e-4) if chain != "one" else first <= math.sqrt(8) * l2 * 1.0001
    assert bounds["1.module.3.weight"] <= 1.0001 * math.sqrt(8) * (math.sqrt(6) if chain == "one" else 1)


@pytest.mark.parametrize("chain", ["inf", "one", "two"])
def test_no_row_has_a_gradient_beyond_the_sensitivities(chain):
    torch.manual_seed(0)
    recipe = TabularPreset(chain, (8, 6), 8.0, lr=0.01, batch_size=64, epochs=1)
    model, loss = recipe.model(SCHEMA), recipe.loss(SCHEMA)
    generator = torch.Generator().manual_seed(1)
    rows = [encode(frame(20), SCHEMA).tensors[0]]
    rows += [size * torch.randn(20, len(SCHEMA.features), generator=generator) for size in (1.0, 1e3, 1e20)]
    rows += [torch.tensor([[98.0, 0, 1, 1, 0, 0, 1], [18.0, 1000, 0, 0, 1, 0, 1], [math.inf] * 7, [-math.inf] * 7])]
    for spread in (0, 1):
        if spread:
            at_the_edge(model)
        bounds = dplip.sensitivity(model, loss, (len(SCHEMA.features),))
        for x in torch.cat(rows):
            for y in (0, 1):
                model.zero_grad()
                loss(model(x[None]), torch.tensor([y])).backward()
                for name, bound in bounds.items():
                    assert float(model.get_parameter(name).grad.norm()) <= bound, (name, x)


def test_hidden_clamps_keep_the_sensitivity_of_the_inf_chain_small():
    def total(clamp: float) -> float:
        recipe = TabularPreset("inf", (32, 32), 8.0, lr=0.01, batch_size=64, epochs=1, clamp=clamp)
        model = recipe.model(SCHEMA)
        at_the_edge(model)
        return dplip.sensitivity(model, recipe.loss(SCHEMA), (len(SCHEMA.features),)).total

    assert total(1.0) < 9 < total(100.0)


def test_presets_and_their_refusals():
    assert tabular_preset("adult", private=True) != tabular_preset("adult", private=False)
    assert tabular_preset("somebody's", private=True) is tabular_preset("adult", private=True)
    for wrong in ({"chain": "three"}, {"lr": 0.0}, {"clamp": math.nan}, {"scale": -1.0}):
        with pytest.raises(dplip.ConfigurationError, match=next(iter(wrong))):
            TabularPreset(
                **{**{"chain": "inf", "widths": (4,), "scale": 1.0, "lr": 1.0, "batch_size": 1, "epochs": 1}, **wrong}
            )


def test_targets_are_scaled_within_their_public_range(tmp_path):
    rows = pd.DataFrame({"x": [0.0, 1.0, 2.0], "y": [10.0, 20.0, 99.0]})
    rows.to_csv(tmp_path / "t.csv", index=False)
    rows.to_csv(tmp_path / "t.test.csv", index=False)
    schema = Schema(Column("y", "numeric", 10, 30), (Column("x", "numeric", 0, 3),))
    table = with_scaled_target(load_table(tmp_path / "t.csv", schema=schema), 0.5)
    assert table.train.tensors[1].tolist() == [-0.5, 0.0, 0.5]
