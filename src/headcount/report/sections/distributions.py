"""The distribution of each score, and its thresholds."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from headcount.report import plot, wording
from headcount.report.head_map import STEPS, score_facts
from headcount.report.results import Report
from headcount.report.sections.section import Drawing, floats, line, panels
from headcount.report.tables import Table, num, table, text
from headcount.summaries import Summary

HEADING = "Distributions and thresholds"


def tables(report: Report) -> Iterator[Table]:
    run = report.run
    if run.scores is None or not run.has_cuts:
        return
    shares = [float(share) for share in run.cuts["share"].values]
    frame = pd.DataFrame({"score": [str(name) for name in run.cuts.data_vars]})
    frame["inactive_when"] = [score_facts(name, run.scores)["inactive_when"] for name in frame["score"]]
    for share in shares:
        frame[f"share_{share:g}"] = [float(of_score.sel(share=share)) for of_score in run.cuts.data_vars.values()]
    yield table(
        "thresholds",
        "Thresholds of each score",
        f"Beyond a threshold lies that share of the scores of all {run.kind.short} on all inputs, measured with nothing off."
        + "".join(f" {said}" for said in run.left_out),
        frame,
        [
            text("Score", "score"), text("Inactive when", "inactive_when"),
            *(num(f"{100 * share:g}%", at, wording.number) for at, share in enumerate(shares, 2)),
        ],
    )  # fmt: skip


def data(report: Report) -> bool | dict[str, Any] | None:
    """What its script draws is the head map's; where there is none, each score's quantiles."""
    scores = report.run.tables.scores
    if not report.run.by_layer or not isinstance(scores, Summary):
        return report.run.measured or None
    shares, found = np.arange(STEPS + 1) / STEPS, []
    for name in report.run.names:
        facts = score_facts(name, scores)
        at = 1 - shares if facts["inactive_when"] == "high" else shares
        found.append({**line(name), **facts, "thresholds": floats(scores.scores[name].quantiles(at), 9)})
    return {"scores": found}


def figures(report: Report) -> Iterator[Drawing]:
    if report.run.measured:
        yield panels("distributions", len(report.run.names), plot.distributions, report.run.drawn)
