"""The head map: every head of the model, and how many are inactive."""

from collections.abc import Iterator
from typing import Any

from headcount.report import plot, wording
from headcount.report.results import Report
from headcount.report.sections.section import Drawing, on_axes
from headcount.report.tables import USUAL_SHARE, Table, nearest_share, num, table, text
from headcount.scores import facts_of
from headcount.store.names import slug

HEADING = "Head map"


def tables(report: Report) -> Iterator[Table]:
    counts = report.run.tables.inactive
    if counts is None or counts.empty:
        return
    share = nearest_share(counts["share"].tolist(), USUAL_SHARE)
    kind = report.run.kind
    count, mean, groups = "{:,}".format, "{:.1f}".format, ""
    columns = [text("Score", "score"), *(num(name.title(), name, count) for name in ("always", "sometimes", "never"))]
    columns.append(num("Per input", "mean_inactive", mean))
    if "groups" in counts:
        groups = " A group is inactive when all query heads of its key-value head are."
        columns += [num(f"Groups {name}", f"groups_{name}", count) for name in ("always", "sometimes")]
        columns.append(num("Groups per input", "groups_mean_inactive", mean))
    yield table(
        "inactive-heads",
        f"{kind.titled(kind.short)} that are always, sometimes and never inactive, at {wording.percent(share, 0)}",
        f"Of {counts['heads'].max():,} {kind.short}, at the threshold of each score.{groups} Other shares are in the CSV.",
        counts,
        columns,
        read=counts.loc[counts["share"] == share],
    )


def data(report: Report) -> dict[str, Any] | None:
    maps, kind = report.head_maps[0], report.run.kind
    return maps and maps | {"noun": kind.noun, "plural": kind.plural, "short": kind.short}


def words(report: Report) -> dict[str, Any]:
    maps = report.head_maps[0]
    return {"grouped": maps is not None and any(size != 1 for size in maps["groups"])}


def figures(report: Report) -> Iterator[Drawing]:
    run = report.run
    if run.scores is None or not run.measured:
        return
    aspect = 0.12 + 0.85 * run.scores.sizes["head"] / run.scores.sizes["layer"]
    for name in run.names:
        if facts_of(name, run.scores):
            file = slug(f"head-map-{name}")
            yield on_axes(
                file, "text", aspect, plot.head_map, run.scores, name, share=USUAL_SHARE, units=run.tables.known_units
            )
