"""Runs compared: accuracy relative to each untouched model, and distributions of the scores they share."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from headcount.report import plot, wording
from headcount.report.results import MARGIN, Report
from headcount.report.sections.accuracy import curves
from headcount.report.sections.section import Drawing, floats, line, panels
from headcount.report.tables import Table, num, table, text
from headcount.thresholding import quantiles

HEADING = "Runs compared"


def tables(report: Report) -> Iterator[Table]:
    evaluated = {name: run for name, run in zip(report.labels, report.runs, strict=True) if run.has_curves}
    if evaluated and len(report.runs) > 1:
        parts = [run.removable.assign(run=name, metric=run.judged.name) for name, run in evaluated.items()]
        metrics = [run.judged for run in evaluated.values()]
        yield table(
            "comparison-removable",
            f"Share of {report.run.kind.short} that can be off within {wording.margins_of(MARGIN, metrics)}, run by run",
            f"By {wording.names_of(metrics)}. With 95% bootstrap intervals.",
            pd.concat(parts, ignore_index=True),
            [
                text("Run", "run"),
                *[text("Metric", lambda row: wording.metric_name(row.metric))] * (len(set(metrics)) > 1),
                text("Score", "curve"), num("Removable share [95%]", wording.removable_with_interval),
                num("Measured up to", "largest_share_measured", wording.percent),
            ],
        )  # fmt: skip
    if not report.distances.empty:
        yield table(
            "distances",
            "Wasserstein distance between the distributions of each score",
            "In the score's unit.",
            report.distances,
            [
                text("Score", "score"), text("One", "one"), text("Other", "other"),
                num("Distance", "distance", wording.number),
            ],
        )  # fmt: skip


def data(report: Report) -> dict[str, Any] | None:
    if len(report.runs) < 2:
        return None
    relative, metrics, unrelated = {}, [], []
    for number, (name, run) in enumerate(zip(report.labels, report.runs, strict=True)):
        if (data := curves(run)) is not None:
            metrics.append(run.judged)
            if data["baseline"] <= 0:  # nothing is a percentage of it
                unrelated.append(name)
                continue
            for of_curve in data["lines"]:
                y = [round(100 * value / data["baseline"], 3) for value in of_curve["y"]]
                relative.setdefault(of_curve["score"], []).append({"run": number, "x": of_curve["x"], "y": y})
    metric = wording.titled(wording.names_of(metrics))
    return {
        "runs": report.labels, "panels": _distributions(report), "curves": relative, "metric": metric, "unrelated": unrelated
    }  # fmt: skip


def _distributions(report: Report) -> list[dict[str, Any]]:
    """Quantiles of each score that several runs have, and the largest distance between two of them."""
    found: dict[str, dict[str, Any]] = {}
    for number, run in enumerate(report.runs):
        for name, of_score in run.scores.data_vars.items() if run.scores is not None else ():
            cuts = quantiles(of_score.to_numpy(), np.arange(101) / 100)
            if not np.isnan(cuts).any():
                panel = found.setdefault(str(name), {**line(str(name)), "runs": [], "values": []})
                panel["runs"].append(number)
                panel["values"].append(floats(cuts))
    apart: dict[str, float] = {}
    for row in wording.rows(report.distances):
        apart[row.score] = max(row.distance, apart.get(row.score, 0.0))
    return [
        {**panel, "note": wording.number(apart[name]) if name in apart else ""}
        for name, panel in found.items()
        if len(panel["runs"]) > 1
    ]


def figures(report: Report) -> Iterator[Drawing]:
    scores = {name: run.scores for name, run in report.measured.items() if run.scores is not None}
    if len(scores) > 1:
        first, *others = scores.values()
        if common := [name for name in first.data_vars if all(name in other for other in others)]:
            yield panels("comparison", len(common), plot.comparison, scores)
