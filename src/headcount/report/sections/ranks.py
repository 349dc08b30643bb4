"""Ranks of scores by the area under their curves, beside the paper's."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from headcount.report import plot, wording
from headcount.report.published import paper_ranks
from headcount.report.results import TOGETHER, Report
from headcount.report.sections.section import Drawing, floats, line, on_axes
from headcount.report.tables import Table, num, table, text

HEADING = "Ranks of scores"


def tables(report: Report) -> Iterator[Table]:
    run = report.run
    if not run.has_curves:
        return
    ranks = run.ranks
    together = run.curves.loc[run.curves["task"] == TOGETHER].set_index("curve")
    tasks = [str(task) for task in ranks.columns]
    frame = pd.DataFrame({"curve": ranks.index})
    frame["normalised_area"] = together["normalised_area"].reindex(ranks.index).to_numpy()
    for task in tasks:
        frame[f"rank on {task}"] = ranks[task].to_numpy()
    frame["paper_mean_rank"] = paper_ranks(ranks.index).to_numpy()
    yield table(
        "ranks",
        "Scores ranked by the normalised area under their curves",
        f"The area is the mean {wording.shown(wording.metric_name(run.judged.name), 40)} over the range of shares "
        "that the score's own curve covers, as in the paper; so "
        "a curve that was measured over smaller shares looks better. "
        f"The {'lower' if run.judged.sign < 0 else 'higher'} the better. The paper's mean rank is that among the same scores, "
        "over its 14 models, by accuracy.",
        frame,
        [
            text("Score", "curve"), num("Area", "normalised_area", lambda area: wording.mean_of(run.judged, area)),
            *(num(f"Rank, {task}", at, _rank) for at, task in enumerate(tasks, 2)),
            num("Paper's mean rank", "paper_mean_rank", _rank),
        ],
    )  # fmt: skip


def _rank(rank: float) -> str:
    return wording.NOT_MEASURED if np.isnan(rank) else f"{rank:.1f}".removesuffix(".0")


def data(report: Report) -> dict[str, Any] | None:
    """Each curve's rank on all questions and on each task, beside its mean rank among them over the paper's 14 models."""
    if not report.run.has_curves:
        return None
    ranks = report.run.ranks
    return {
        "scores": [line(str(curve)) for curve in ranks.index],
        "tasks": [wording.shown(task, 60) for task in ranks.columns],
        "ranks": [floats(ranks[task].to_numpy(), 4) for task in ranks.columns],
        "paper": floats(paper_ranks(ranks.index).to_numpy(), 4),
    }


def figures(report: Report) -> Iterator[Drawing]:
    if report.run.has_curves:
        yield on_axes("ranks", "column", 0.2 + 0.045 * len(report.run.removable), plot.ranks, report.run)
