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
    "answer", "accuracy", "divergence", "heads", "distributions", "agreement", "stability", "ranks", "layers", "comparison",
    "paper", "methods",
)  # fmt: skip
SECTIONS = {name: import_module(f"{__name__}.{name}") for name in _ORDER}


def of_each(part: str, report: Report) -> dict[str, Any]:
    """``part`` (tables, data, words or figures) of the sections that have it, by their names."""
    return {name: getattr(module, part)(report) for name, module in SECTIONS.items() if hasattr(module, part)}


def result_tables(report: Report) -> list[Table]:
    """Every table that the runs' results give, the same on the page, as CSV and as LaTeX."""
    return [table for of_section in of_each("tables", report).values() for table in of_section]
