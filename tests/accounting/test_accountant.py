"""The accountant's history, its state, and what it refuses."""

import math

import pytest
from helpers.epsilons import DELTA

from dplip.accounting import (
    Accountant,
    Budget,
    FixedSizeEvent,
    GaussianEvent,
    create_accountant,
    events,
    get_noise_multiplier,
    selection_epsilon,
)
from dplip.errors import ConfigurationError


@pytest.mark.parametrize("value", ["1e-5", None, [1e-5], True, math.nan, 1 + 0j])
def test_what_is_no_number_is_refused_by_name(value):
    for name, call in {
        "delta": lambda: Accountant().get_epsilon(value),
        "target_delta": lambda: Budget(1.0, value),
        "target_epsilon": lambda: Budget(value, DELTA),
        "noise_multiplier": lambda: GaussianEvent(value, 0.1),
        "sample_rate": lambda: GaussianEvent(1.0, value),
        "epsilon_tolerance": lambda: get_noise_multiplier(
            target_epsilon=1.0, target_delta=DELTA, sample_rate=0.1, steps=1, epsilon_tolerance=value
        ),
        "mean_runs": lambda: selection_epsilon([], delta=DELTA, mean_runs=value),
        "batch_size": lambda: FixedSizeEvent(1.0, value, 10),
    }.items():
        with pytest.raises(ConfigurationError, match=f"^{name}=") as refused:
            call()
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, 2.0, math.nan])
def test_delta_lies_strictly_between_0_and_1(delta):
    with pytest.raises(ConfigurationError, match=r"delta="):
        Accountant().get_epsilon(delta)


@pytest.mark.parametrize(
    "sigma, rate",
    [(-1.0, 0.1), (math.nan, 0.1), (math.inf, 0.1), (1.0, 0.0), (1.0, 1.5), (1.0, math.nan), (1, -0.1)],
)
def test_an_invalid_event_is_refused_and_not_counted(sigma, rate):
    accountant = Accountant()
    with pytest.raises(ConfigurationError, match=r"(noise_multiplier|sample_rate)="):
        accountant.step(noise_multiplier=sigma, sample_rate=rate)
    assert accountant.num_steps == 0


def test_an_unknown_mechanism_is_told_the_nearest():
    with pytest.raises(ConfigurationError, match=r"accountant='RDP': .*nearest name is 'rdp'"):
        create_accountant("RDP")


# State


def test_history_merges_equal_neighbours_and_counts_every_step():
    accountant = Accountant()
    for sigma in (1.0, 1.0, 2.0, 1.0):
        accountant.step(noise_multiplier=sigma, sample_rate=0.1)
    assert accountant.history == [(1.0, 0.1, 2), (2.0, 0.1, 1), (1.0, 0.1, 1)]
    assert accountant.num_steps == 4
    accountant.history.clear()
    assert accountant.num_steps == 4


@pytest.mark.parametrize("mechanism", ["rdp", "prv"])
def test_looking_ahead_says_what_comes_and_changes_nothing(mechanism):
    accountant = Accountant(mechanism)
    accountant.step(noise_multiplier=1.0, sample_rate=0.1)
    ahead = accountant.epsilon_after(GaussianEvent(2.0, 0.2), 3, DELTA)
    assert accountant.num_steps == 1
    for _ in range(3):
        accountant.step(noise_multiplier=2.0, sample_rate=0.2)
    assert accountant.get_epsilon(DELTA) == ahead
    with pytest.raises(ConfigurationError, match=r"steps=-1"):
        accountant.epsilon_after(GaussianEvent(2.0, 0.2), -1, DELTA)


@pytest.mark.parametrize("mechanism", ["rdp", "prv"])
def test_an_opacus_state_loads_unchanged_and_back(mechanism):
    from opacus.accountants import create_accountant as opacus_accountant

    theirs, ours = opacus_accountant(mechanism), create_accountant(mechanism)
    for sigma in (1.0, 1.0, 2.0):
        theirs.step(noise_multiplier=sigma, sample_rate=0.01)
    ours.load_state_dict(theirs.state_dict())
    assert ours.state_dict() == dict(theirs.state_dict())
    assert ours.get_epsilon(DELTA) <= theirs.get_epsilon(DELTA) + 1e-7
    theirs.load_state_dict(ours.state_dict())


def test_a_state_of_another_mechanism_is_refused_by_both_names():
    with pytest.raises(ConfigurationError, match=r"mechanism='prv'.*'rdp'"):
        create_accountant("rdp").load_state_dict(create_accountant("prv").state_dict())


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"history": []},
        {"mechanism": "rdp", "history": [(1.0, 2.0, 1)]},
        {"mechanism": "rdp", "history": [(1, 0.1, 0)]},
    ],
)
def test_a_damaged_state_changes_nothing(state):
    accountant = Accountant()
    accountant.step(noise_multiplier=1.0, sample_rate=0.5)
    with pytest.raises(ConfigurationError):
        accountant.load_state_dict(state)
    assert accountant.history == [(1.0, 0.5, 1)]


def test_the_number_of_an_events_values_tells_its_kind():
    """Opacus's history holds values without names, and state is loaded from it."""
    assert len({len(names) for names in events._FIELDS.values()}) == len(events._FIELDS)
