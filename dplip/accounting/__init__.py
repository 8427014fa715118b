"""What a run spends: events, accountants that compose them into epsilon, calibration and budgets."""

from dplip.accounting.accountant import Accountant, create_accountant, fixed_size_epsilon
from dplip.accounting.budget import Budget
from dplip.accounting.calibration import get_noise_multiplier
from dplip.accounting.dp_event import to_dp_event
from dplip.accounting.events import NEIGHBORING, Event, GaussianEvent, event_of
from dplip.accounting.fixed_size import FixedSizeEvent
from dplip.accounting.selection import selection_epsilon
from dplip.accounting.trade_off import TradeOff, tightest

__all__ = [
    "NEIGHBORING",
    "Accountant",
    "Budget",
    "Event",
    "FixedSizeEvent",
    "GaussianEvent",
    "TradeOff",
    "create_accountant",
    "event_of",
    "fixed_size_epsilon",
    "get_noise_multiplier",
    "selection_epsilon",
    "tightest",
    "to_dp_event",
]
