"""Layer by layer: what heads have, and how often they are inactive."""

from collections.abc import Iterator
from typing import Any

from headcount.report import plot, wording
from headcount.report.results import Report
from headcount.report.sections.section import Drawing, floats, line, panels
from headcount.report.tables import Table, num, table

HEADING = "Layer by layer"


def tables(report: Report) -> Iterator[Table]:
    if not report.run.measured:
        return
    profile = report.run.profile
    medians = profile.pivot(index="layer", columns="score", values="q50")
    medians = medians[list(dict.fromkeys(profile["score"]))].reset_index()
    yield table(
        "layers",
        "Median of each score, layer by layer",
        f"Over {report.run.kind.short} and inputs.",
        profile,
        [num("Layer", 0), *(num(str(name), at, wording.number) for at, name in enumerate(medians.columns) if at)],
        read=medians,
    )


def data(report: Report) -> dict[str, Any] | None:
    """Each score layer by layer: mean and quantiles, and how often its heads are inactive at each share."""
    if not report.run.measured:
        return None
    profile, frequency = report.run.profile, report.run.tables.frequency
    found = []
    for score, rows in profile.groupby("score", sort=False):
        often = None
        if frequency is not None and score in frequency:
            of_score = frequency[str(score)]
            often = floats((of_score.mean("head") if "head" in of_score.dims else of_score).to_numpy(), 4)
        quantiles = {name: floats(rows[name].to_numpy()) for name in ("mean", "q10", "q50", "q90")}
        found.append({**line(str(score)), **quantiles, "often": often})
    return {
        "layers": profile["layer"].drop_duplicates().tolist(),
        "shares": floats(frequency["share"].values) if frequency is not None else [],
        "panels": found,
    }


def figures(report: Report) -> Iterator[Drawing]:
    if report.run.measured:
        yield panels("layers", len(report.run.names), plot.layers, report.run.drawn)
