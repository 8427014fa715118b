"""Plots of certified accuracy (extra ``plot``)."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from dplip.certificates.accuracy import certified_curve
from dplip.errors import ConfigurationError, first_line


def certified_accuracy_plot(radii: Tensor | dict[str, Tensor], path: str | Path, norm: float = 2) -> None:
    """Draw certified accuracy against radius, one curve for each named tensor of ``correct_radii``.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigurationError("A picture needs matplotlib: pip install 'dplip[plot]'.") from None
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for name, values in (radii if isinstance(radii, dict) else {"": radii}).items():
        axes.plot(*certified_curve(values, 200), label=name or None)
    axes.set(xlabel=f"radius (l{norm:g}, raw input units)", ylabel="certified accuracy", ylim=(0, 1), xlim=(0, None))
    axes.grid(alpha=0.3)
    if isinstance(radii, dict):
        axes.legend()
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as wrong:
        raise ConfigurationError(f"{path}: no picture can be written there ({first_line(wrong)}).") from None
