"""The two pages of a report: ``report.html``, which needs nothing beside itself, and ``model-card.md``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dplip.reports.contents import contents
from dplip.runtime.files import write_text

PAGES = {"report.html": "report.html.jinja", "model-card.md": "model-card.md.jinja"}


def write_pages(folder: str | Path) -> list[Path]:
    """Write the report of a run into its folder, for a person to read; returns the two paths.

    Args:
        folder: that of a finished run; its report, its ledgers and what ``dplip audit`` found are read.

    Raises:
        ConfigurationError: there is no finished run, or a file cannot be written.

    Guarantee: whatever is shown of privacy is an upper bound of all that the ledgers of the folder hold, rounded up;
    whatever is certified is rounded down. No figure is computed on the training data.
    """
    folder = Path(folder)
    found = contents(folder)
    for name, template in PAGES.items():
        write_text(folder / name, render(template, found))
    return [folder / name for name in PAGES]


def render(template: str, found: dict[str, Any]) -> str:
    """A template of this package, filled in; what is put into HTML is escaped."""
    import jinja2  # late: few runs are reported on

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=template.endswith(".html.jinja"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    return environment.get_template(template).render(found)
