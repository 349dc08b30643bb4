"""The sections of the page, in its order: a module each, with its template and script beside it."""

from headcount.report.results import Report
from headcount.report.sections import (
    accuracy,
    agreement,
    answer,
    comparison,
    distributions,
    divergence,
    heads,
    layers,
    methods,
    paper,
    ranks,
    stability,
)
from headcount.report.tables import Table

SECTIONS = tuple(
    module.SECTION
    for module in (
        answer, accuracy, divergence, heads, distributions, agreement, stability, ranks, layers, comparison, paper, methods,
    )
)  # fmt: skip


def result_tables(report: Report) -> list[Table]:
    """Every table that the runs' results give, the same on the page, as CSV and as LaTeX."""
    return [table for section in SECTIONS for table in section.tables(report)]
