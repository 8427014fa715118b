"""A run in the words of dp_accounting costs there what it costs here."""

import dp_accounting as dp
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from helpers.epsilons import DELTA, INTEGERS

from dplip.accounting import Accountant, GaussianEvent, to_dp_event


def test_a_run_in_the_words_of_dp_accounting_costs_the_same_there():
    events = [GaussianEvent(1.0, 0.02)] * 50 + [GaussianEvent(3.0, 1.0)] * 2
    accountant = Accountant()
    for event in events:
        accountant.step(noise_multiplier=event.noise_multiplier, sample_rate=event.sample_rate)
    theirs = RdpAccountant(orders=INTEGERS)
    theirs.compose(to_dp_event(events))
    assert accountant.get_epsilon(DELTA) <= theirs.get_epsilon(DELTA) <= 1.05 * accountant.get_epsilon(DELTA)
    pld = PLDAccountant()
    pld.compose(to_dp_event(events))
    assert pld.get_epsilon(DELTA) < accountant.get_epsilon(DELTA)
    assert isinstance(to_dp_event([]), dp.NoOpDpEvent)
