"""Checks of arguments that several parts take: what is wrong with a value is said in one sentence."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any, SupportsIndex, TypeGuard

from dplip.errors import ConfigurationError


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it may be compared with numbers: neither a text nor a truth value, which Python would take for 1."""
    return isinstance(value, Real) and not isinstance(value, bool)


def require_delta(delta: float, name: str = "delta") -> None:
    if not is_number(delta) or not 0 < delta < 1:
        raise ConfigurationError(
            f"{name}={delta!r}: a failure probability lies strictly between 0 and 1; "
            "pass one below 1 / (number of examples)"
        )


def require_target(epsilon: float) -> None:
    if not is_number(epsilon) or not epsilon > 0:
        raise ConfigurationError(f"target_epsilon={epsilon!r}: a budget is a number above 0; pass one (inf: no limit)")


def require_magnitude(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ConfigurationError(f"{name}={value}: this is a magnitude, finite and 0 or more; pass such a number")


def whole(name: str, value: Any, least: int) -> int:
    if not isinstance(value, SupportsIndex) or operator.index(value) < least:
        raise ConfigurationError(f"{name}={value!r}: this is a whole number, at least {least}; pass an int")
    return operator.index(value)


def positive(radius: float) -> float:
    """The radius of a ball, if it is one."""
    if not (math.isfinite(radius) and radius > 0):
        raise ConfigurationError(f"radius={radius}: the radius of a ball is a finite number > 0.")
    return float(radius)
