"""The head map: every head of the model, and how many are inactive."""

from collections.abc import Iterator
from typing import Any

from headcount.report import plot, wording
from headcount.report.results import Report
from headcount.report.sections.section import Drawing, Section, on_axes
from headcount.report.tables import USUAL_SHARE, Table, nearest_share, table
from headcount.scores import facts_of
from headcount.store.names import slug


def _tables(report: Report) -> Iterator[Table]:
    counts = report.run.tables.inactive
    if counts is None or counts.empty:
        return
    share = nearest_share(counts["share"].tolist(), USUAL_SHARE)
    columns = [
        ("Score", lambda row: row.score, False),
        ("Always", lambda row: f"{row.always:,}", True),
        ("Sometimes", lambda row: f"{row.sometimes:,}", True),
        ("Never", lambda row: f"{row.never:,}", True),
        ("Per input", lambda row: f"{row.mean_inactive:.1f}", True),
    ]
    groups = ""
    if "groups" in counts:
        groups = " A group is inactive when all query heads of its key-value head are."
        columns += [
            ("Groups always", lambda row: f"{row.groups_always:,}", True),
            ("Groups sometimes", lambda row: f"{row.groups_sometimes:,}", True),
            ("Groups per input", lambda row: f"{row.groups_mean_inactive:.1f}", True),
        ]
    yield table(
        "inactive-heads",
        f"Heads that are always, sometimes and never inactive, at {wording.percent(share, 0)}",
        f"Of {counts['heads'].max():,} heads, at the threshold of each score.{groups} Other shares are in the CSV.",
        counts,
        columns,
        read=counts.loc[counts["share"] == share],
    )


def _data(report: Report) -> dict[str, Any] | None:
    return report.head_maps[0]


def _words(report: Report) -> dict[str, Any]:
    maps = report.head_maps[0]
    return {"grouped": maps is not None and any(size != 1 for size in maps["groups"])}


def _figures(report: Report) -> Iterator[Drawing]:
    run = report.run
    if run.scores is None or not run.measured:
        return
    aspect = 0.12 + 0.85 * run.scores.sizes["head"] / run.scores.sizes["layer"]
    for name in run.names:
        if facts_of(name, run.scores):
            file = slug(f"head-map-{name}")
            yield on_axes(file, "text", aspect, plot.head_map, run.scores, name, share=USUAL_SHARE, units=run.units)


SECTION = Section(id="heads", heading="Head map", tables=_tables, data=_data, words=_words, figures=_figures)
