"""Stability across benchmarks: do thresholds, and the heads beyond them, carry over?"""

from collections.abc import Iterator
from typing import Any

from headcount.report import plot, wording
from headcount.report.results import Report
from headcount.report.sections.section import Drawing, Section, floats, line, on_axes
from headcount.report.tables import Table, cell, nearest_share, table

_SHARE = 0.15  # the paper's


def _tables(report: Report) -> Iterator[Table]:
    if report.stability is None:
        return
    thresholds, heads = report.stability
    share = nearest_share(thresholds["share"].tolist(), _SHARE)
    yield table(
        "stability",
        f"Thresholds on each benchmark, at {wording.percent(share, 0)}",
        "Spread is the largest minus the smallest, over their mean. Other shares are in the CSV.",
        thresholds,
        [
            ("Score", lambda row: row.score, False),
            *((name, cell(2 + at, wording.number), True) for at, name in enumerate(report.benchmarks)),
            ("Spread", lambda row: wording.percent(row.spread), True),
        ],
        read=thresholds.loc[thresholds["share"] == share],
    )
    share = nearest_share(heads["share"].tolist(), _SHARE)
    yield table(
        "stability-heads",
        f"Whether the same heads are inactive on both benchmarks, at {wording.percent(share, 0)}",
        "Correlation is Spearman's, of how often each head is inactive; overlap is that of the heads most often inactive, "
        "as many as the share says.",
        heads,
        [
            ("Score", lambda row: row.score, False),
            ("One", lambda row: row.one, False),
            ("Other", lambda row: row.other, False),
            ("Correlation", lambda row: wording.number(row.correlation), True),
            ("Overlap", lambda row: wording.number(row.iou), True),
        ],
        read=heads.loc[heads["share"] == share],
    )


def _data(report: Report) -> dict[str, Any] | None:
    """Each score's threshold on each benchmark, relative to its mean over benchmarks, at each share."""
    if report.stability is None:
        return None
    thresholds, names = report.stability[0], list(report.benchmarks)
    relative = thresholds[names].div(thresholds[names].mean(axis=1).abs(), axis=0)
    lines = [
        {**line(str(score)), "y": floats(relative.loc[rows.index].to_numpy(), 5), "threshold": floats(rows[names].to_numpy())}
        for score, rows in thresholds.groupby("score", sort=False)
    ]  # fmt: skip
    return {"benchmarks": names, "shares": floats(thresholds["share"].unique()), "lines": lines}


def _figures(report: Report) -> Iterator[Drawing]:
    if len(report.benchmarks) > 1:
        scores = {name: run.known_scores for name, run in report.benchmarks.items()}
        yield on_axes("stability", "text", 0.55, plot.stability, scores)


SECTION = Section(id="stability", heading="Stability across benchmarks", tables=_tables, data=_data, figures=_figures)
