"""Neurons: layer by layer from the least to the most active, and those at both ends; for units too many to show each."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headcount.analysis.distributions import extremes
from headcount.report import wording
from headcount.report.head_map import score_facts
from headcount.report.results import Report
from headcount.report.sections import heads
from headcount.report.sections.section import floats, line
from headcount.report.tables import Table, num, table, text
from headcount.summaries import Summary

HEADING = "Neurons"

COLUMNS, ENDS = 200, 20  # of a layer's row; units that are named at each end


def tables(report: Report) -> Iterator[Table]:
    scores, kind = report.run.tables.scores, report.run.kind
    yield from heads.tables(report)
    if not isinstance(scores, Summary):
        return
    found = extremes(scores, ENDS)
    yield table(
        "extremes",
        f"The {ENDS} {kind.short} with the largest and the smallest mean of each score",
        f"Mean, standard deviation, smallest and largest value over inputs; layers and {kind.short} are counted from 0.",
        found,
        [
            text("Score", "score"), text("End", "end"), num("Layer", "layer"), num(kind.titled(kind.noun), "unit"),
            *(num(name.title(), name, wording.number) for name in ("mean", "deviation", "smallest", "largest")),
        ],
        read=found.loc[found["score"] == found["score"].iloc[0]],
    )  # fmt: skip


def data(report: Report) -> dict[str, Any] | None:
    """Of each score every layer's means, sorted and averaged in ``COLUMNS`` bins, and the units at both ends."""
    scores = report.run.tables.scores
    if not isinstance(scores, Summary):
        return None
    ends, found = extremes(scores, ENDS), []
    columns = ["layer", "unit", "mean", "deviation", "smallest", "largest"]
    for name, of_score in scores.scores.items():
        of_ends = {
            str(end): [floats(row) for row in of_end[columns].to_numpy()]
            for end, of_end in ends.loc[ends["score"] == name].groupby("end")
        }
        rows = [floats(binned(means), 4) for means in of_score.moments.mean]
        found.append({**line(name), **score_facts(name, scores), "rows": rows, **of_ends})
    counts = next(iter(scores.scores.values())).moments.count
    return {
        "scores": found, "layers": scores.layers, "counts": (counts > 0).sum(1).tolist(), "inputs": scores.num_inputs,
        "tokens": scores.num_tokens,
    }  # fmt: skip


def binned(means: NDArray[np.float64], most: int = COLUMNS) -> NDArray[np.float64]:
    """Sorted, and averaged in as many bins of nearly one size; what was not measured is left out."""
    known = np.sort(means[~np.isnan(means)])
    if len(known) <= most:
        return known
    starts = np.linspace(0, len(known), most, endpoint=False).astype(int)
    return np.add.reduceat(known, starts) / np.diff([*starts, len(known)])


def words(report: Report) -> dict[str, Any]:
    return {"ends": ENDS}
