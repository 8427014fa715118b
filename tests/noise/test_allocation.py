"""The split of the noise over parameters spends the multiplier exactly, with the least energy."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dplip.errors import ConfigurationError
from dplip.noise import split

layers = st.lists(st.tuples(st.floats(1e-6, 1e6), st.integers(1, 10**7)), min_size=1, max_size=6)


def energy(stds, sizes):
    return sum(size * std**2 for std, size in zip(stds, sizes, strict=True))


@settings(max_examples=60, deadline=None)
@given(layers=layers, sigma=st.floats(1e-2, 1e3))
def test_the_split_spends_the_multiplier_exactly_and_has_the_least_energy(layers, sigma):
    deltas, sizes = zip(*layers, strict=True)
    names = [f"layer{k}" for k in range(len(layers))]
    result = split(dict(zip(names, deltas, strict=True)), dict(zip(names, sizes, strict=True)), sigma)
    assert list(result) == names
    stds = [result[name] for name in names]
    spent = sum((delta / std) ** 2 for delta, std in zip(deltas, stds, strict=True))
    assert spent <= sigma**-2 * (1 + 1e-15)
    assert spent == pytest.approx(sigma**-2, rel=1e-9)
    isotropic = [sigma * math.hypot(*deltas)] * len(layers)
    per_layer = [sigma * math.sqrt(len(layers)) * delta for delta in deltas]
    assert energy(stds, sizes) <= energy(isotropic, sizes) * (1 + 1e-9)
    assert energy(stds, sizes) <= energy(per_layer, sizes) * (1 + 1e-9)


def test_the_split_of_a_published_example():
    stds = split({"a": 1.0, "b": 1.0}, {"a": 100, "b": 10_000}, 1.0)
    assert energy(stds.values(), [100, 10_000]) == pytest.approx(12_100)  # 20,200 for either baseline


def test_a_constant_parameter_and_no_noise_get_none():
    assert split({"a": 0.0, "b": 2.0}, {"a": 5, "b": 1}, 1.5) == {"a": 0.0, "b": pytest.approx(3.0)}
    assert split({"a": 1.0, "b": 2.0}, {"a": 5, "b": 1}, 0.0) == {"a": 0.0, "b": 0.0}
    assert split({}, {}, 1.0) == {}


@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
def test_an_invalid_magnitude_is_refused_by_name(value):
    with pytest.raises(ConfigurationError, match=r"sensitivities\['a'\]="):
        split({"a": value}, {"a": 1}, 1.0)
    with pytest.raises(ConfigurationError, match="noise_multiplier="):
        split({"a": 1.0}, {"a": 1}, value)


def test_sizes_must_fit():
    with pytest.raises(ConfigurationError, match=r"sizes\['a'\]=0"):
        split({"a": 1.0}, {"a": 0}, 1.0)
    with pytest.raises(ConfigurationError, match="same names"):
        split({"a": 1.0}, {"b": 1}, 1.0)
