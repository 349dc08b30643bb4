"""Accuracy as heads are switched off: a line a curve."""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from headcount.metrics import Metric
from headcount.report import plot, wording
from headcount.report.results import MARGIN, Report, RunResults
from headcount.report.sections.section import Drawing, floats, line, on_axes, percentages
from headcount.report.tables import Table, num, policy_columns, table, text

HEADING = "{} as {} are switched off"


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
            *policy_columns(), num(wording.titled(name), "accuracy", lambda mean: wording.mean_of(metric, mean)),
            num("Change [95%]", lambda row: wording.change_with_interval(row, metric)),
            text(f"Within {within}", lambda row: wording.verdict(row.within_margin)),
            num("p", "p_mcnemar", wording.p_value), num("Questions", "num_questions", "{:,}".format),
        ],
    )  # fmt: skip


def tables(report: Report) -> Iterator[Table]:
    if report.run.evaluated:
        answers = report.run.answers
        yield accuracy_table(answers.accuracy, answers.judged, answers.tasks)


def data(report: Report) -> dict[str, Any] | None:
    return curves(report.run)


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


def figures(report: Report) -> Iterator[Drawing]:
    if report.run.has_curves:
        yield on_axes("accuracy", "text", 0.6, plot.accuracy, report.run)
