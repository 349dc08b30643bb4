"""How far answers move: finer than right and wrong."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from headcount.policies import is_random
from headcount.report import wording
from headcount.report.results import Report
from headcount.report.sections.section import floats, line, percentages
from headcount.report.tables import Table, num, policy_columns, table, text

HEADING = "How far answers move"


def divergence_table(divergence: pd.DataFrame) -> Table:
    """``divergence`` is as from ``headcount.analysis.divergence_table``, with the column ``task``."""
    policy, *shares = policy_columns()
    return table(
        "divergence",
        "How far answers move under each policy",
        "KL: divergence of the answers' probabilities from the untouched model's, nats. Log-likelihood: change of the right "
        "answer's, nats, or where a benchmark is of texts, of theirs a token (the loss with its sign turned). Means over "
        "questions, paired with the untouched model's, with 95% bootstrap intervals.",
        divergence,
        [
            policy, text("Benchmark", lambda row: wording.shown(row.task, 60)), *shares,
            num("KL [95%]", lambda row: wording.nats(row.kl, row.kl_low, row.kl_high)),
            num("Log-likelihood [95%]", _gold), num("Questions", "num_questions", "{:,}".format),
        ],
    )  # fmt: skip


def _gold(row: Any) -> str:
    ends = row.gold_loglikelihood, row.gold_loglikelihood_low, row.gold_loglikelihood_high
    return wording.nats(*ends, signed=True)


def tables(report: Report) -> Iterator[Table]:
    if not report.run.divergence.empty:
        yield divergence_table(report.run.divergence)


def data(report: Report) -> list[dict[str, Any]] | None:
    """For each benchmark, how far answers move, in nats: by measure the lines, curves in order and random last."""
    run, panels = report.run, []
    if run.divergence.empty:
        return None
    order = {curve: number for number, curve in enumerate(run.removable["curve"] if run.evaluated else ())}
    for task, of_task in run.divergence.groupby("task", sort=False):
        of_task = of_task.loc[of_task["curve"] != ""]
        measures = {}
        for measure in ("kl", "gold_loglikelihood"):
            known = of_task.loc[of_task[measure].notna()]
            curves = sorted(dict.fromkeys(known["curve"]), key=lambda curve: (is_random(curve), order.get(curve, 0)))
            if lines := [_line(known.loc[known["curve"] == curve], curve, measure) for curve in curves]:
                measures[measure] = lines
        if measures:
            per_token = bool(of_task["per_token"].any())
            panels.append({"task": wording.shown(task, 60), "per_token": per_token, "measures": measures})
    return panels or None


def _line(of_curve: pd.DataFrame, curve: str, measure: str) -> dict[str, Any]:
    points = sorted(wording.rows(of_curve), key=lambda row: row.share_realised)
    ends = {"y": measure, "low": f"{measure}_low", "high": f"{measure}_high"}
    return {
        **line(curve),
        "label": ["untouched", *(wording.shown(row.policy) for row in points)],
        "x": percentages([0.0, *(row.share_realised for row in points)]),
        **{end: floats([0.0, *(getattr(row, name) for row in points)], 5) for end, name in ends.items()},
    }
