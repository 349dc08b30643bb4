"""The answer: how many heads can be zeroed, what limits that, and the removable share of each curve."""

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from headcount.metrics import Metric
from headcount.report import plot, wording
from headcount.report.results import CONFIDENCE, MARGIN, Report, RunResults
from headcount.report.sections.section import Drawing, Section, on_axes
from headcount.report.tables import Table, policy_columns, table


def removable_table(removable: pd.DataFrame, metric: Metric) -> Table:
    """``removable`` is as from ``headcount.analysis.removable_table``."""
    within, name = wording.fall_name(MARGIN, metric), wording.shown(wording.metric_name(metric.name), 40)
    fall, side = ("rise", "above") if metric.sign < 0 else ("fall", "below")
    return table(
        "removable",
        f"Share of heads that can be zeroed within {within}",
        f"Where each score's curve crosses the line {within} {side} the untouched model for the last time, with 95% "
        f"bootstrap intervals; at smaller shares it may have been {side}. ≥ marks curves that did not {fall} that far "
        f"within the shares measured. Shown: the largest share up to which every measured one keeps {name} within "
        f"{within} with 95% confidence.",
        removable,
        [
            ("Score", lambda row: row.curve, False),
            ("Removable share [95%]", wording.removable_with_interval, True),
            ("Shown up to", lambda row: wording.percent(row.share_shown), True),
            ("Measured up to", lambda row: wording.percent(row.largest_share_measured), True),
        ],
    )


def decided_table(decided: pd.DataFrame, unit: str = " questions") -> Table:
    """``decided`` is as from ``RunTables.decided``, and has rows; ``unit`` is what a policy stopped after."""
    metric, rule = wording.judged_in(decided), wording.rows(decided.head(1))[0]
    lower, within = metric.sign < 0, wording.fall_name(rule.margin, metric)
    return table(
        "decided",
        f"{f'At most {within} above' if lower else f'Within {within} of'} the untouched model?",
        "Questions were asked in random order, and no more of them under a policy once it was known, with "
        f"{wording.percent(rule.confidence, 0)} confidence, whether the {'rise' if lower else 'fall'} over the "
        f"whole benchmark is within the margin. Changes are those of {wording.names_of([metric])} on the questions asked, in "
        f"{'points' if metric.is_share else 'its own unit'}.",
        decided,
        [
            *policy_columns(digits=1),
            ("Change", lambda row: wording.change_of(metric, row.change), True),
            ("Verdict", lambda row: row.verdict or "not known yet", False),
            ("Stopped after", lambda row: f"{row.num_questions:,} of {row.total:,}{unit}", True),
        ],
    )


def _tables(report: Report) -> Iterator[Table]:
    run = report.run
    if run.has_curves:
        yield removable_table(run.removable, run.judged)
    if run.decided is not None:
        yield decided_table(run.decided)


def _words(report: Report) -> dict[str, Any]:
    run = report.run
    if not run.evaluated:
        return {"caveats": [], "shares": None, "answer": "", "proof": "", "untouched": ""}
    removable, accuracy = run.removable, run.answers.accuracy
    asked = {"num_questions": int(accuracy["num_questions"].iloc[0]), "margin": MARGIN, "confidence": CONFIDENCE}
    limits = {"margin": MARGIN, "confidence": CONFIDENCE, "chance": run.chance, "metric": run.judged}
    return {
        "answer": _claim(run, **asked),
        "proof": wording.proof(removable, **asked),
        "caveats": wording.caveats(accuracy, removable, **limits),
        "shares": None if removable.empty else _shares(removable),
        "untouched": wording.mean_of(run.judged, float(accuracy["accuracy"].iloc[0])),
    }


def _claim(run: RunResults, **asked: Any) -> str:
    """The sentence; empty where nothing was tried but checkpoints whose heads are gone."""
    if not any(wording.by_score(curve) or wording.is_random(curve) for curve in run.removable["curve"]):
        return ""
    tasks = [wording.shown(task, 60) for task in run.answers.tasks]
    named = tasks if len(tasks) <= 3 else [f"{len(tasks)} tasks"]
    return wording.answer(run.removable, metric=run.judged, tasks=named, **asked)


def _shares(removable: pd.DataFrame) -> dict[str, Any]:
    """The removable shares on a common scale, which ends at ``most`` percent."""
    most = 10 * max(1, math.ceil(10 * removable["largest_share_measured"].max()))
    rows = [
        {
            "score": wording.shown(row.curve, 40),
            "random": wording.is_random(row.curve),
            "at": round(10_000 * row.removable_share / most, 2),
            "low": round(10_000 * row.low / most, 2),
            "high": round(10_000 * row.high / most, 2),
            "open": wording.open_above(row),
            "text": wording.removable_with_interval(row),
        }
        for row in wording.rows(removable)
    ]
    return {"rows": rows, "most": most}


def _figures(report: Report) -> Iterator[Drawing]:
    run = report.run
    if run.has_curves:
        yield on_axes("removable", "column", 0.2 + 0.045 * len(run.removable), plot.removable, run)


SECTION = Section(id="answer", heading="The answer", tables=_tables, words=_words, figures=_figures)
