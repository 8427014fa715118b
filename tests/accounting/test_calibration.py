"""The noise multiplier that a budget needs: never too little, and hardly more."""

import math

import pytest
from helpers.epsilons import DELTA, epsilon
from hypothesis import given, settings
from hypothesis import strategies as st

from dplip.accounting import (
    get_noise_multiplier,
)
from dplip.errors import ConfigurationError


@settings(max_examples=12, deadline=None)
@given(
    target=st.floats(0.05, 20),
    rate=st.sampled_from([1.0, 0.1, 0.01, 1e-3]),
    steps=st.integers(1, 2000),
    delta=st.sampled_from([1e-4, 1e-6]),
)
def test_calibration_never_overshoots_and_comes_close(target, rate, steps, delta):
    sigma = get_noise_multiplier(target_epsilon=target, target_delta=delta, sample_rate=rate, steps=steps)
    assert 0 <= target - epsilon("rdp", sigma, rate, steps, delta) <= 0.01


def test_prv_needs_less_noise_and_does_not_overshoot():
    run = {"target_epsilon": 3.0, "target_delta": DELTA, "sample_rate": 0.05}
    rdp = get_noise_multiplier(**run, epochs=3)
    prv = get_noise_multiplier(**run, epochs=3, accountant="prv")
    assert prv < rdp
    assert 0 <= 3.0 - epsilon("prv", prv, 0.05, 60) <= 0.01


@pytest.mark.parametrize("size", [93, 99, 105])
def test_epochs_are_a_whole_number_of_steps(size):
    run = {"target_epsilon": 2.0, "target_delta": DELTA, "sample_rate": 1 / size}
    assert int(1 / (1 / size)) != size  # the trap
    assert get_noise_multiplier(**run, epochs=2) == get_noise_multiplier(**run, steps=2 * size)


def test_extreme_targets():
    run = {"target_delta": DELTA, "sample_rate": 0.1, "steps": 10}
    assert get_noise_multiplier(**run, target_epsilon=math.inf) == 0.0
    assert epsilon("rdp", get_noise_multiplier(**run, target_epsilon=1e4), 0.1, 10) <= 1e4
    assert epsilon("rdp", get_noise_multiplier(**run, target_epsilon=1e-3), 0.1, 10) <= 1e-3
    with pytest.raises(ConfigurationError, match=r"target_epsilon=1e-09"):
        get_noise_multiplier(target_epsilon=1e-9, target_delta=1e-12, sample_rate=1.0, steps=10**6)


@pytest.mark.parametrize(
    "change, name",
    [
        ({"target_epsilon": 0.0}, "target_epsilon=0.0"),
        ({"target_epsilon": math.nan}, "target_epsilon=nan"),
        ({"target_delta": 0.0}, "delta=0.0"),
        ({"sample_rate": 1.1}, "sample_rate=1.1"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 1.5}, "steps=1.5"),
        ({"steps": None}, "steps=None"),
        ({"epochs": 1}, "epochs=1"),
        ({"steps": None, "epochs": 0}, "epochs=0"),
        ({"epsilon_tolerance": 0.0}, "epsilon_tolerance=0.0"),
        ({"target_epsilon": "3"}, "target_epsilon='3'"),
        ({"target_delta": "1e-5"}, "target_delta='1e-5'"),
        ({"sample_rate": "0.1"}, "sample_rate='0.1'"),
        ({"accountant": "gdp"}, "accountant='gdp'"),
    ],
)
def test_bad_input_is_refused_by_name_and_value(change, name):
    run = {"target_epsilon": 1.0, "target_delta": DELTA, "sample_rate": 0.1, "steps": 10}
    with pytest.raises(ConfigurationError, match=name):
        get_noise_multiplier(**(run | change))
