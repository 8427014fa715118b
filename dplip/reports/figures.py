"""Curves as inline SVG. Colours come from the page's style sheet, so a figure follows its light and dark form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

LARGE, SMALL = (480, 288), (320, 210)
"""Width and height, in units of which a text's letters have 12."""

LEFT, RIGHT, TOP, BOTTOM = 56, 16, 20, 46
TICKS = 5


@dataclass(frozen=True)
class Line:
    """A curve: its points, its class in the style sheet (``first``, ``second`` or ``faint``), and its name."""

    x: Sequence[float]
    y: Sequence[float]
    kind: str = "first"
    name: str = ""


def plot(
    lines: Sequence[Line],
    *,
    title: str,
    x: str,
    y: str,
    log_x: bool = False,
    share: bool = False,
    small: bool = False,
) -> str:
    """Curves over one pair of axes, as an ``svg`` element; empty if there is nothing to draw.

    Args:
        title: what it shows, for those who cannot see it.
        x, y: names of the axes.
        log_x: the horizontal axis is logarithmic.
        share: the vertical axis goes from 0 to 100%.
        small: half as large, with the last value of the first curve written at its end.
    """
    width, height = SMALL if small else LARGE
    right, base = width - RIGHT, height - BOTTOM
    drawn = [(line, _finite(line)) for line in lines]
    points = [point for _, each in drawn for point in each]
    if not points:
        return ""
    low, high = min(p[0] for p in points), max(p[0] for p in points)
    top = 1.0 if share else _ceiling(max(p[1] for p in points))
    across = _Axis(low, high if high > low else low + 1, LEFT, right, log_x)
    up = _Axis(0.0, top, base, TOP, False)
    parts = [f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">']
    parts += [f"<title>{escape(title)}</title>"]
    for value in up.ticks():
        place, text = up(value), f"{100 * value:.0f}%" if share else _tick(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{place:.1f}" y2="{place:.1f}"/>')
        parts.append(_text(LEFT - 8, place + 4, text, anchor="end"))
    middle = (TOP + base) / 2
    for value in across.ticks():
        place = across(value)
        parts.append(f'<line class="axis" x1="{place:.1f}" x2="{place:.1f}" y1="{base}" y2="{base + 5}"/>')
        parts.append(_text(place, base + 19, _tick(value)))
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{base}" y2="{base}"/>')
    parts.append(_text((LEFT + right) / 2, height - 6, escape(x)))
    parts.append(_text(13, middle, escape(y), f'transform="rotate(-90 13 {middle:.1f})"'))
    for line, each in reversed(drawn):  # the first curve lies on top
        path = " ".join(f"{across(a):.1f},{up(b):.1f}" for a, b in each)
        parts.append(f'<polyline class="line {line.kind}" points="{path}"/>')
    if small and drawn[0][1]:
        last = drawn[0][1][-1]
        parts.append(_text(across(last[0]), up(last[1]) - 7, _tick(last[1]), 'class="value"', "end"))
    return "".join([*parts, "</svg>"])


def legend(lines: Sequence[Line]) -> str:
    """The names of the curves, with the marks of their classes."""
    marks = (f'<li><span class="mark {line.kind}"></span>{escape(line.name)}</li>' for line in lines if line.name)
    return f'<ul class="legend">{"".join(marks)}</ul>'


@dataclass(frozen=True)
class _Axis:
    """From values between ``low`` and ``high`` to places between ``start`` and ``stop``."""

    low: float
    high: float
    start: float
    stop: float
    logarithmic: bool

    def __call__(self, value: float) -> float:
        low, high, at = (math.log10(v) if self.logarithmic else v for v in (self.low, self.high, value))
        return self.start + (self.stop - self.start) * (at - low) / (high - low)

    def ticks(self) -> list[float]:
        if self.logarithmic:
            powers = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            return [10.0**k for k in powers]
        step = _step((self.high - self.low) / TICKS)
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _text(x: float, y: float, text: str, more: str = "", anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{text}</text>'


def _finite(line: Line) -> list[tuple[float, float]]:
    return [(a, b) for a, b in zip(line.x, line.y, strict=True) if math.isfinite(a) and math.isfinite(b)]


def _step(about: float) -> float:
    """The round number (1, 2 or 5 times a power of ten) next above."""
    power = 10.0 ** math.floor(math.log10(about))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= about * (1 - 1e-9))


def _ceiling(value: float) -> float:
    if value <= 0:
        return 1.0
    step = _step(value / TICKS)
    return step * math.ceil(value / step - 1e-9)


def _tick(value: float) -> str:
    return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e")
