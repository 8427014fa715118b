"""The cost of choosing among runs."""

import math

import dp_accounting as dp
import pytest
from dp_accounting.rdp import RdpAccountant
from helpers.epsilons import DELTA, INTEGERS, epsilon

from dplip.accounting import GaussianEvent, selection_epsilon, to_dp_event
from dplip.errors import ConfigurationError


@pytest.mark.parametrize("mean", [1.5, 10.0, 100.0])
@pytest.mark.parametrize("shape", [0.0, 0.5, 1.0, 2.0])
def test_choosing_among_runs_costs_what_dp_accounting_says(mean, shape):
    events = [GaussianEvent(2.0, 0.05)] * 200
    theirs = RdpAccountant(orders=INTEGERS)
    theirs.compose(dp.dp_event.RepeatAndSelectDpEvent(to_dp_event(events), mean, shape))
    spent = selection_epsilon(events, delta=DELTA, mean_runs=mean, shape=shape)
    assert 0.99 * theirs.get_epsilon(DELTA) <= spent <= theirs.get_epsilon(DELTA) + 1e-9


def test_choosing_costs_less_than_composing_and_more_than_one_run():
    events = [GaussianEvent(2.0, 0.05)] * 200
    one = epsilon("rdp", 2.0, 0.05, 200)
    assert selection_epsilon(events, delta=DELTA, mean_runs=1) == pytest.approx(one)
    spent = [selection_epsilon(events, delta=DELTA, mean_runs=mean) for mean in (1, 2, 10, 50)]
    assert spent == sorted(spent)
    assert spent[-1] < epsilon("rdp", 2.0, 0.05, 200 * 50)
    assert selection_epsilon([], delta=DELTA, mean_runs=10) == 0.0
    assert selection_epsilon([GaussianEvent(0.0, 0.5)], delta=DELTA, mean_runs=10) == math.inf


@pytest.mark.parametrize("change", [{"mean_runs": 0.5}, {"mean_runs": math.inf}, {"shape": -0.5}, {"delta": 1.0}])
def test_searches_that_are_none_are_refused(change):
    with pytest.raises(ConfigurationError, match=next(iter(change))):
        selection_epsilon([GaussianEvent(1.0, 0.1)], **{"delta": DELTA, "mean_runs": 2, **change})
