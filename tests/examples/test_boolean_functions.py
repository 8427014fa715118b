"""The theory of l-infinity networks on Boolean functions, as it is stated in examples/boolean_functions.py."""

import importlib.util
import itertools
from pathlib import Path
from types import ModuleType

import pytest
import torch

import dplip


@pytest.fixture(scope="module")
def theory() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "examples" / "boolean_functions.py"
    spec = importlib.util.spec_from_file_location("boolean_functions", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("d", [2, 8, 16])
def test_the_table_meets_the_predictions(theory, d):
    torch.manual_seed(0)
    (row,) = theory.table((d,))
    assert row["flip_sum_order_statistic"] == pytest.approx(d)
    assert row["flip_sum_standard"] <= 1 + 1e-5
    assert row["radius_standard"] == pytest.approx(1 / (2 * d), abs=1e-6)
    assert row["radius_order_statistic"] == pytest.approx(0.5, abs=1e-6)
    assert row["error_standard"] == pytest.approx(0.5 - 0.5 / d, abs=1e-6)
    assert row["error_order_statistic"] <= 1e-6


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_order_statistics_are_represented_exactly(theory, k):
    torch.manual_seed(0)
    x = torch.rand(200, 6, dtype=torch.float64)
    expected = theory.sorted_entry(x, k)
    torch.testing.assert_close(theory.kth_largest(x, k), expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(theory.kth_largest_by_distances(x, k), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("d", "k"), [(2, 1), (8, 1), (8, 4), (16, 8)])
def test_no_standard_network_certifies_more_and_the_library_says_so(theory, d, k):
    """The certificate of any network with l1 rows is at most 1/(2d) somewhere on the 2d points, or it errs there."""
    a, b = theory.flip_pairs(d, k)
    x, y = torch.cat((a, b)), torch.cat((torch.zeros(d), torch.ones(d))).long()
    for seed in range(10):
        torch.manual_seed(seed)
        net = theory.Steps(d, 16)
        z = net(x).detach()
        assert theory.flip_sum(z[:d], z[d:]) <= 1 + 1e-5
        assert theory.margin_radius(z, y) <= 1 / (2 * d) + 1e-6


def test_training_finds_what_the_theory_promises(theory):
    x, y = theory.any_bit(8)
    torch.manual_seed(0)
    radii = [theory.train(theory.distance_net(8, 16), x, y, 1.0, 300) for _ in range(3)]
    assert 0.4 < max(radii) <= 0.5 + 1e-3
    assert theory.train(theory.Steps(8, 16), x, y, 1 / 8, 300) <= 1 / 16 + 1e-6


def test_a_flip_pair_differs_in_one_bit(theory):
    for d, k in itertools.product((2, 5), (1, 2)):
        a, b = theory.flip_pairs(d, k)
        assert torch.equal((a - b).abs().sum(0), torch.ones(d)) and torch.equal(a.sum(1), torch.full((d,), k - 1.0))
    assert dplip.lipschitz(theory.Steps(4, 8), (4,), norm=float("inf")) <= 1 + 1e-3
