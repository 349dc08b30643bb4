"""The sections of the page, in its order: a module each, and beside it its template ``NAME.html.j2`` and script ``NAME.js``.

A module has a ``HEADING``, in which {} is what accuracy is measured by, and what its section needs of these, each a
function of the ``Report``: ``tables``, which its template finds by their ids and figures are written beside; ``data``, which
its script draws, as ``sections.NAME``, and templates see as ``data.NAME`` (None where there is nothing to draw); ``words``
that its template needs besides; ``figures`` for papers.
"""

from importlib import import_module
from typing import Any

from headcount.report.results import Report
from headcount.report.tables import Table

_ORDER = (
    "answer", "accuracy", "divergence", "heads", "neurons", "distributions", "agreement", "stability", "ranks", "layers",
    "comparison", "paper", "methods",
)  # fmt: skip
SECTIONS = {name: import_module(f"{__name__}.{name}") for name in _ORDER}


def sections_of(report: Report) -> list[str]:
    """Those that say something of the first run's kind of unit."""
    left_out = {"heads", "agreement"} if report.run.by_layer else {"neurons"}
    left_out |= set() if report.run.manifest.unit == "head" else {"paper"}
    return [name for name in _ORDER if name not in left_out]


def of_each(part: str, report: Report) -> dict[str, Any]:
    """``part`` (tables, data, words or figures) of the sections that have it, by their names."""
    names = sections_of(report)
    return {name: getattr(SECTIONS[name], part)(report) for name in names if hasattr(SECTIONS[name], part)}


def result_tables(report: Report) -> list[Table]:
    """Every table that the runs' results give, the same on the page, as CSV and as LaTeX."""
    return [table for of_section in of_each("tables", report).values() for table in of_section]
