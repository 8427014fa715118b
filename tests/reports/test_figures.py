"""Curves as SVG: where the points lie, and what the axes say."""

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from dplip.reports.figures import Line, plot


def points(text: str) -> list[tuple[float, float]]:
    (found,) = re.findall(r'points="([^"]*)"', text)
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in found.split())]


@pytest.mark.parametrize("log_x", [False, True])
@pytest.mark.parametrize("small", [False, True])
def test_a_curve_is_drawn_between_its_axes(log_x, small):
    line = Line([0.001, 0.01, 0.1], [0.0, 0.5, 1.0])
    text = plot([line], title="a < b", x="x", y="y", log_x=log_x, share=True, small=small)
    ElementTree.fromstring(text)
    places = points(text)
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert [y for _, y in places] == sorted((y for _, y in places), reverse=True)
    if log_x:
        assert places[1][0] == pytest.approx((places[0][0] + places[2][0]) / 2, abs=0.1)
    assert places[1][1] == pytest.approx((places[0][1] + places[2][1]) / 2, abs=0.1)
    assert ">100%</text>" in text and ">0.1</text>" in text and "a &lt; b" in text


@pytest.mark.parametrize("values", [[3.0], [3.0, 3.0], [0.0, 0.0], [1e-9, 2e-9], [1e9, 5e9], [1.0, math.inf]])
def test_any_values_can_be_drawn(values):
    text = plot([Line(range(len(values)), values)], title="t", x="x", y="y", small=True)
    ElementTree.fromstring(text)
    assert "nan" not in text and "inf" not in text
    assert 2 <= text.count('class="grid"') <= 12


def test_without_points_there_is_no_figure():
    assert plot([Line([], [])], title="t", x="x", y="y") == ""
    assert plot([Line([1.0], [math.inf])], title="t", x="x", y="y") == ""
