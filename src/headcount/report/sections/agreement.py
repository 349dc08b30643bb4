"""Agreement of scores: do two call the same heads inactive?"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from headcount.report import plot, wording
from headcount.report.results import Report
from headcount.report.sections.section import Drawing, floats, on_axes
from headcount.report.tables import USUAL_SHARE, Table, nearest_share, num, table, text
from headcount.scores import facts_of

HEADING = "Agreement of scores"


def tables(report: Report) -> Iterator[Table]:
    if (agreement := report.run.tables.agreement) is None:
        return
    share = nearest_share(agreement["share"].values.tolist(), USUAL_SHARE)
    names = [str(name) for name in agreement["other"].values]
    matrix = pd.DataFrame(agreement["iou"].sel(share=share).to_numpy(), columns=names)
    matrix.insert(0, "score", names, allow_duplicates=True)
    yield table(
        "agreement",
        f"Overlap (intersection over union) of the {report.run.kind.short} that two scores call inactive, at "
        f"{wording.percent(share, 0)}",
        "",
        agreement.to_dataframe(["share", "score", "other"]).reset_index(),
        [text("Score", 0), *(num(name, at, wording.ratio) for at, name in enumerate(names, 1))],
        read=matrix,
    )


def data(report: Report) -> dict[str, Any] | None:
    """Matrices of every kind and share, [kind][share][score][other]."""
    if (agreement := report.run.tables.agreement) is None:
        return None
    return {
        "scores": [wording.shown(name, 40) for name in agreement["score"].values],
        "shares": floats(agreement["share"].values),
        "kinds": {str(kind): floats(values.to_numpy(), 3) for kind, values in agreement.data_vars.items()},
    }


def words(report: Report) -> dict[str, str]:
    """A sentence on the two scores of different kinds that agree most; empty where there are none."""
    if (agreement := report.run.tables.agreement) is None:
        return {"alike": ""}
    share = nearest_share(agreement["share"].values.tolist(), USUAL_SHARE)
    overlap = agreement["iou"].sel(share=share).to_numpy()
    names = [str(name) for name in agreement["score"].values]
    kinds = [name.partition("_")[0] for name in names]
    different = [
        (overlap[i, j], names[i], names[j])
        for i in range(len(names))
        for j in range(i)
        if kinds[i] != kinds[j] and not np.isnan(overlap[i, j])
    ]
    if not different:
        return {"alike": ""}
    value, one, other = max(different)
    said = f"{wording.shown(other, 40)} and {wording.shown(one, 40)}, by {value:.2f}."
    return {"alike": f"At {wording.percent(share, 0)} the scores of different kinds that overlap most are {said}"}


def figures(report: Report) -> Iterator[Drawing]:
    run = report.run
    known = [name for name in run.names if facts_of(name, run.scores)] if run.scores is not None else []
    if run.scores is not None and known and not run.summarised:
        yield on_axes("agreement", "text", 0.85, plot.agreement, run.scores[known], share=USUAL_SHARE)
