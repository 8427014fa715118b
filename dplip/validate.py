"""Arguments that several parts take: each check returns the value, or says what is wrong with it."""

from __future__ import annotations

import math
import operator
from typing import Any, SupportsIndex

from dplip.errors import ConfigurationError, is_number


def require_delta(delta: float, name: str = "delta") -> None:
    if not is_number(delta) or not 0 < delta < 1:
        raise ConfigurationError(
            f"{name}={delta!r}: a failure probability lies strictly between 0 and 1; "
            "pass one below 1 / (number of examples)"
        )


def require_target(epsilon: float) -> None:
    if not is_number(epsilon) or not epsilon > 0:
        raise ConfigurationError(f"target_epsilon={epsilon!r}: a budget is a number above 0; pass one (inf: no limit)")


def whole(name: str, value: Any, least: int) -> int:
    if not isinstance(value, SupportsIndex) or operator.index(value) < least:
        raise ConfigurationError(f"{name}={value!r}: this is a whole number, at least {least}; pass an int")
    return operator.index(value)


def positive(radius: float) -> float:
    """The radius of a ball, if it is one."""
    if not (math.isfinite(radius) and radius > 0):
        raise ConfigurationError(f"radius={radius}: the radius of a ball is a finite number > 0.")
    return float(radius)
