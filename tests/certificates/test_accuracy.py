"""Certified accuracy, its curve and its average."""

import pytest
import torch
from torch.utils.data import TensorDataset

import dplip
from dplip.certificates import (
    average_certified_radius,
    certified_accuracy,
    certified_curve,
    correct_radii,
)


def test_a_wrong_prediction_has_no_radius(digits):
    model, x, y = digits
    found = correct_radii(model, TensorDataset(x, y))
    right = model(x).argmax(1) == y
    assert (found[~right] == -1).all() and (~right).any()
    torch.testing.assert_close(found[right], dplip.certify(model, x)[right])


def test_certified_accuracy_is_strict_and_at_radius_zero_it_is_accuracy():
    found = torch.tensor([0.0, 0.5, 1.0, -1.0])
    assert certified_accuracy(found, [0.0, 0.25, 0.5, 0.75, 1.0]) == [0.75, 0.5, 0.25, 0.25, 0.0]


def test_certified_accuracy_falls_with_the_radius(digits):
    model, x, y = digits
    found = correct_radii(model, TensorDataset(x, y))
    accuracy = certified_accuracy(found, [i / 50 for i in range(60)])
    assert accuracy == sorted(accuracy, reverse=True)
    assert accuracy[0] == float((model(x).argmax(1) == y).double().mean())


def test_the_average_certified_radius_is_the_area_under_the_curve(digits):
    model, x, y = digits
    found = correct_radii(model, TensorDataset(x, y))
    at, accuracy = certified_curve(found, 2000)
    area = torch.trapezoid(torch.tensor(accuracy), torch.tensor(at))
    assert average_certified_radius(found) == pytest.approx(float(area), rel=2e-3)
    assert average_certified_radius(torch.tensor([-1.0, 0.0, 3.0])) == 1.0


def test_a_curve_without_any_radius_is_flat():
    at, accuracy = certified_curve(torch.tensor([-1.0, -1.0]), 4)
    assert at == [0.0] * 5 and accuracy == [0.0] * 5
