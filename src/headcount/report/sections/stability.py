"""Stability across benchmarks: do thresholds, and the heads beyond them, carry over?"""

from collections.abc import Iterator
from typing import Any

from headcount.report import plot, wording
from headcount.report.results import Report
from headcount.report.sections.section import Drawing, floats, line, on_axes
from headcount.report.tables import Table, nearest_share, num, table, text

HEADING = "Stability across benchmarks"

_SHARE = 0.15  # the paper's


def tables(report: Report) -> Iterator[Table]:
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
            text("Score", "score"), *(num(name, at, wording.number) for at, name in enumerate(report.benchmarks, 2)),
            num("Spread", "spread", wording.percent),
        ],
        read=thresholds.loc[thresholds["share"] == share],
    )  # fmt: skip
    if heads.empty:  # of units that were counted by layer
        return
    share = nearest_share(heads["share"].tolist(), _SHARE)
    yield table(
        "stability-heads",
        f"Whether the same {report.run.kind.short} are inactive on both benchmarks, at {wording.percent(share, 0)}",
        f"Correlation is Spearman's, of how often each is inactive; overlap is that of the {report.run.kind.short} that are most "
        "often inactive, as many as the share says.",
        heads,
        [
            text("Score", "score"), text("One", "one"), text("Other", "other"),
            num("Correlation", "correlation", wording.number), num("Overlap", "iou", wording.number),
        ],
        read=heads.loc[heads["share"] == share],
    )  # fmt: skip


def data(report: Report) -> dict[str, Any] | None:
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


def figures(report: Report) -> Iterator[Drawing]:
    if len(report.benchmarks) > 1:
        scores = {
            name: run.scores[[score for score in run.scores.data_vars if score in run.cuts]]
            for name, run in report.benchmarks.items()
            if run.scores is not None
        }
        yield on_axes("stability", "text", 0.55, plot.stability, scores)
