"""Accuracy as heads are zeroed: a line a curve."""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from headcount.metrics import Metric
from headcount.report import plot, wording
from headcount.report.results import MARGIN, Report, RunResults
from headcount.report.sections.section import Drawing, Section, floats, line, on_axes, percentages
from headcount.report.tables import Table, policy_columns, table


def accuracy_table(accuracy: pd.DataFrame, metric: Metric, tasks: Sequence[str] = ()) -> Table:
    """``accuracy`` is as from ``headcount.analysis.accuracy_table``."""
    unit, within = "points" if metric.is_share else "the metric's own unit", wording.fall_name(MARGIN, metric)
    name, fall, better = wording.shown(wording.metric_name(metric.name), 40), "fall", ""
    if metric.sign < 0:
        fall, better = "rise", f" {name} is better when lower, so a rise is what costs."
    said = "".join(f" {text}" for text in [*filter(None, [metric.doubt]), *wording.left_out(accuracy, metric)])
    return table(
        "accuracy",
        f"{wording.titled(name)} under each policy",
        f"Mean over the questions of {', '.join(wording.shown(task, 60) for task in tasks)}.{better} Changes are in "
        f"{unit} from the untouched model, paired by question, with 95% intervals; p is McNemar's, exact. Within {within}: "
        f"whether a {fall} of less than {within} is shown or refuted with 95% confidence, each policy by itself.{said}",
        accuracy,
        [
            *policy_columns(),
            (wording.titled(name), lambda row: wording.mean_of(metric, row.accuracy), True),
            ("Change [95%]", lambda row: wording.change_with_interval(row, metric), True),
            (f"Within {within}", lambda row: wording.verdict(row.within_margin), False),
            ("p", lambda row: wording.p_value(row.p_mcnemar), True),
            ("Questions", lambda row: f"{row.num_questions:,}", True),
        ],
    )


def _tables(report: Report) -> Iterator[Table]:
    if report.run.evaluated:
        answers = report.run.answers
        yield accuracy_table(answers.accuracy, answers.judged, answers.tasks)


def curves(run: RunResults) -> dict[str, Any] | None:
    """Curves in percent, those with the largest removable share first and random last."""
    if not run.has_curves:
        return None
    policies = wording.rows(run.answers.accuracy)
    baseline, metric = policies[0].accuracy, run.judged
    scaled = percentages if metric.is_share else floats
    lines = []
    for curve in run.removable["curve"]:
        points = sorted((row for row in policies if row.curve == curve), key=lambda row: row.share_realised)
        ends = {
            end: scaled(
                wording.possible(metric, [baseline, *(baseline + getattr(row, f"change_{end}") for row in points)])
            )
            for end in ("low", "high")
        }
        lines.append({
            **line(curve),
            "label": ["untouched", *(wording.shown(row.policy) for row in points)],
            "x": percentages([0.0, *(row.share_realised for row in points)]),
            "y": scaled([baseline, *(baseline + row.change for row in points)]),
            **ends,
        })  # fmt: skip
    best = wording.best_row(run.removable)
    return {
        "baseline": scaled([baseline])[0],
        "floor": scaled([baseline - metric.sign * MARGIN])[0],
        "margin": f"{wording.fall_name(MARGIN, metric)} {'above' if metric.sign < 0 else 'below'}",
        "share": metric.is_share,
        "lines": lines,
        "best": best and wording.shown(best.curve, 40),
        "metric": wording.shown(wording.metric_name(metric.name), 60),
    }


def _figures(report: Report) -> Iterator[Drawing]:
    if report.run.has_curves:
        yield on_axes("accuracy", "text", 0.6, plot.accuracy, report.run)


SECTION = Section(
    id="accuracy",
    heading="{} as heads are zeroed",
    tables=_tables,
    data=lambda report: curves(report.run),
    figures=_figures,
)
