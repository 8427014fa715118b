"""Numbers as a report shows them: what is promised is rounded to the safe side."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any

DIGITS = 4


def number(value: Any) -> float:
    """A number of ``report.json``, in which infinity is a string."""
    return float(value)


def at_most(value: Any, digits: int = DIGITS) -> str:
    """An upper bound, such as epsilon, rounded up.

    >>> at_most(7.99273), at_most(0.00001234561), at_most(123456), at_most("inf")
    ('7.993', '0.00001235', '123500', '∞')
    """
    return _rounded(number(value), digits, ROUND_CEILING)


def delta_at_most(value: Any) -> str:
    """A delta, rounded up to six digits.

    >>> delta_at_most(1e-5), delta_at_most(1 / 1437)
    ('1e-05', '0.000695895')
    """
    return plain(at_most(value, 6))


def at_least(value: Any, digits: int = DIGITS) -> str:
    """A lower bound, such as a certified radius, rounded down.

    >>> at_least(0.141976), at_least(0.3)
    ('0.1419', '0.3')
    """
    return _rounded(number(value), digits, ROUND_FLOOR)


def percent_at_most(share: float) -> str:
    """An upper bound of a share, in percent.

    >>> percent_at_most(0.34412)
    '34.5%'
    """
    return f"{math.ceil(share * 1000 - 1e-9) / 10:.1f}%"


def percent_at_least(share: float) -> str:
    """A lower bound of a share, in percent."""
    return f"{math.floor(share * 1000 + 1e-9) / 10:.1f}%"


def percent(share: float) -> str:
    """A share that was counted, in percent."""
    return f"{100 * share:.1f}%"


def plain(value: Any) -> str:
    """A setting, with up to six digits."""
    return _infinite(number(value)) or f"{number(value):.6g}"


def _rounded(value: float, digits: int, rounding: str) -> str:
    if value == 0 or not math.isfinite(value):
        return _infinite(value) or "0"
    exact = Decimal(repr(value))  # less than half a unit of the last place away
    places = Decimal(1).scaleb(exact.adjusted() - digits + 1)
    text = f"{exact.quantize(places, rounding=rounding):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _infinite(value: float) -> str:
    return "" if math.isfinite(value) else "∞" if value > 0 else "-∞"
