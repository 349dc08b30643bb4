"""The distribution of each score, and its thresholds."""

from collections.abc import Iterator

import pandas as pd

from headcount.report import plot, wording
from headcount.report.head_map import score_facts
from headcount.report.results import Report
from headcount.report.sections.section import Drawing, panels
from headcount.report.tables import Table, num, table, text

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
        "Beyond a threshold lies that share of the scores of all heads on all inputs, measured with no head off."
        + "".join(f" {said}" for said in run.left_out),
        frame,
        [
            text("Score", "score"), text("Inactive when", "inactive_when"),
            *(num(f"{100 * share:g}%", at, wording.number) for at, share in enumerate(shares, 2)),
        ],
    )  # fmt: skip


def data(report: Report) -> bool | None:
    """What its script draws is the head map's."""
    return report.run.measured or None


def figures(report: Report) -> Iterator[Drawing]:
    if report.run.measured:
        yield panels("distributions", len(report.run.names), plot.distributions, report.run.scores)
