"""The answer: how many heads can be off, what limits that, and the removable share of each curve."""

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from headcount.analysis import Answers
from headcount.metrics import Metric
from headcount.policies import BASELINE, PRUNED, is_random
from headcount.report import plot, wording
from headcount.report.results import CONFIDENCE, MARGIN, Report, RunResults
from headcount.report.sections.section import Drawing, on_axes
from headcount.report.tables import Table, num, policy_columns, table, text

HEADING = "The answer"


def removable_table(removable: pd.DataFrame, metric: Metric, units: str = "heads") -> Table:
    """``removable`` is as from ``headcount.analysis.removable_table``."""
    within, name = wording.fall_name(MARGIN, metric), wording.shown(wording.metric_name(metric.name), 40)
    fall, side = ("rise", "above") if metric.sign < 0 else ("fall", "below")
    return table(
        "removable",
        f"Share of {units} that can be off within {within}",
        f"Where each score's curve crosses the line {within} {side} the untouched model for the last time, with 95% "
        f"bootstrap intervals; at smaller shares it may have been {side}. ≥ marks curves that did not {fall} that far "
        f"within the shares measured. Shown: the largest share up to which every measured one keeps {name} within "
        f"{within} with 95% confidence.",
        removable,
        [
            text("Score", "curve"), num("Removable share [95%]", wording.removable_with_interval),
            num("Shown up to", "share_shown", wording.percent),
            num("Measured up to", "largest_share_measured", wording.percent),
        ],
    )  # fmt: skip


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
            *policy_columns(digits=1), num("Change", "change", lambda change: wording.change_of(metric, change)),
            text("Verdict", lambda row: row.verdict or "not known yet"),
            num("Stopped after", lambda row: f"{row.num_questions:,} of {row.total:,}{unit}"),
        ],
    )  # fmt: skip


def tables(report: Report) -> Iterator[Table]:
    run = report.run
    if run.has_curves:
        yield removable_table(run.removable, run.judged, run.kind.short)
    if run.decided is not None:
        yield decided_table(run.decided)


def words(report: Report) -> dict[str, Any]:
    run = report.run
    if not run.evaluated:
        return {"caveats": [], "shares": None, "answer": "", "proof": "", "untouched": ""}
    removable, accuracy = run.removable, run.answers.accuracy
    said: dict[str, Any] = {"margin": MARGIN, "confidence": CONFIDENCE, "units": run.kind.short}
    asked: dict[str, Any] = said | {"num_questions": int(accuracy["num_questions"].iloc[0])}
    return {
        "answer": _claim(run, **asked),
        "proof": wording.proof(removable, **asked),
        "caveats": wording.caveats(accuracy, removable, chance=_chance(run.answers), metric=run.judged, **said),
        "shares": None if removable.empty else _shares(removable),
        "untouched": wording.mean_of(run.judged, float(accuracy["accuracy"].iloc[0])),
    }


def _claim(run: RunResults, **asked: Any) -> str:
    """The sentence; empty where nothing was tried but checkpoints whose heads are gone."""
    if all(curve == PRUNED for curve in run.removable["curve"]):
        return ""
    tasks = [wording.shown(task, 60) for task in run.answers.tasks]
    named = tasks if len(tasks) <= 3 else [f"{len(tasks)} tasks"]
    return wording.answer(run.removable, metric=run.judged, tasks=named, **asked)


def _chance(answers: Answers) -> float | None:
    """Accuracy of guessing: mean of 1 / choices over the baseline's questions; None when that is not known."""
    outcomes, metric = answers.outcomes, answers.metric
    if metric not in ("acc", "acc_norm") or "loglikelihoods" not in outcomes.columns:
        return None
    asked = outcomes[(outcomes["policy"] == BASELINE) & outcomes[metric].notna()]
    known = (None if pd.api.types.is_scalar(values) else values for values in asked["loglikelihoods"])
    choices = [0 if values is None else len(values) for values in known]
    return sum(1 / count for count in choices) / len(choices) if choices and min(choices) > 1 else None


def _shares(removable: pd.DataFrame) -> dict[str, Any]:
    """The removable shares on a common scale, which ends at ``most`` percent."""
    most = 10 * max(1, math.ceil(10 * max(removable["largest_share_measured"])))
    rows = [
        {
            "score": wording.shown(row.curve, 40), "random": is_random(row.curve), "open": wording.open_above(row),
            "at": round(10_000 * row.removable_share / most, 2), "low": round(10_000 * row.low / most, 2),
            "high": round(10_000 * row.high / most, 2), "text": wording.removable_with_interval(row),
        }
        for row in wording.rows(removable)
    ]  # fmt: skip
    return {"rows": rows, "most": most}


def figures(report: Report) -> Iterator[Drawing]:
    run = report.run
    if run.has_curves:
        yield on_axes("removable", "column", 0.2 + 0.045 * len(run.removable), plot.removable, run)
