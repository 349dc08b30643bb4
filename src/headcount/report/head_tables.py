"""Tables of what was measured: thresholds, inactive heads, agreement of scores, profiles over layers."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from headcount.report import wording
from headcount.report.head_map import score_facts
from headcount.report.results import RunResults
from headcount.report.tables import Table, cell, table

USUAL_SHARE = 0.10  # shown where there is room for one share


def head_tables(run: RunResults) -> Iterator[Table]:
    """Those of a run with scores; fewer where none of them is registered."""
    if run.has_cuts:
        yield _inactive(run)
        yield _thresholds(run)
        if run.summarised is None:
            yield _agreement(run)
    yield _layers(run)


def nearest_share(shares: Sequence[float], wanted: float) -> float:
    """The one of ``shares`` that is closest; of two as close the larger, which says more than the share of 0."""
    return min(shares, key=lambda share: (round(abs(share - wanted), 9), -share))


def _inactive(run: RunResults) -> Table:
    counts = run.frequencies
    share = nearest_share(counts["share"].tolist(), USUAL_SHARE)
    columns = [
        ("Score", lambda row: row.score, False),
        ("Always", lambda row: f"{row.always:,}", True),
        ("Sometimes", lambda row: f"{row.sometimes:,}", True),
        ("Never", lambda row: f"{row.never:,}", True),
        ("Per input", lambda row: f"{row.mean_inactive:.1f}", True),
    ]
    if "groups" in counts:
        columns += [
            ("Groups always", lambda row: f"{row.groups_always:,}", True),
            ("Groups sometimes", lambda row: f"{row.groups_sometimes:,}", True),
            ("Groups per input", lambda row: f"{row.groups_mean_inactive:.1f}", True),
        ]
    groups = " A group is inactive when all query heads of its key-value head are." if "groups" in counts else ""
    return table(
        "inactive-heads",
        f"Heads that are always, sometimes and never inactive, at {wording.percent(share, 0)}",
        f"Of {counts['heads'].max():,} heads, at the threshold of each score.{groups} Other shares are in the CSV.",
        counts,
        columns,
        read=counts.loc[counts["share"] == share],
    )


def _thresholds(run: RunResults) -> Table:
    assert run.scores is not None
    shares = [float(share) for share in run.cuts["share"].values]
    frame = pd.DataFrame({"score": [str(name) for name in run.cuts.data_vars]})
    frame["inactive_when"] = [score_facts(name, run.scores)["inactive_when"] for name in frame["score"]]
    for share in shares:
        frame[f"share_{share:g}"] = [float(of_score.sel(share=share)) for of_score in run.cuts.data_vars.values()]
    return table(
        "thresholds",
        "Thresholds of each score",
        "Beyond a threshold lies that share of the scores of all heads on all inputs, measured with nothing zeroed."
        + "".join(f" {said}" for said in run.left_out),
        frame,
        [
            ("Score", lambda row: row.score, False),
            ("Inactive when", lambda row: row.inactive_when, False),
            *((f"{100 * share:g}%", cell(2 + at, wording.number), True) for at, share in enumerate(shares)),
        ],
    )


def _agreement(run: RunResults) -> Table:
    agreement = run.agreement
    share = nearest_share(agreement["share"].values.tolist(), USUAL_SHARE)
    names = [str(name) for name in agreement["other"].values]
    matrix = pd.DataFrame(agreement["iou"].sel(share=share).to_numpy(), columns=names)
    matrix.insert(0, "score", names, allow_duplicates=True)
    return table(
        "agreement",
        f"Overlap (intersection over union) of the heads that two scores call inactive, at {wording.percent(share, 0)}",
        "",
        agreement.to_dataframe(["share", "score", "other"]).reset_index(),
        [
            ("Score", lambda row: row.score, False),
            *((name, cell(1 + at, _ratio), True) for at, name in enumerate(names)),
        ],
        read=matrix,
    )


def most_alike(run: RunResults) -> str:
    """A sentence on the two scores of different kinds that agree most; empty where there are none."""
    agreement = run.agreement
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
        return ""
    value, one, other = max(different)
    return (
        f"At {wording.percent(share, 0)} the scores of different kinds that overlap most are "
        f"{wording.shown(other, 40)} and {wording.shown(one, 40)}, by {value:.2f}."
    )


def _layers(run: RunResults) -> Table:
    profile = run.profile
    medians = profile.pivot(index="layer", columns="score", values="q50")
    medians = medians[list(dict.fromkeys(profile["score"]))].reset_index()
    return table(
        "layers",
        "Median of each score, layer by layer",
        "Over heads and inputs.",
        profile,
        [
            ("Layer", lambda row: str(row[0]), True),
            *((str(name), cell(at, wording.number), True) for at, name in enumerate(medians.columns) if at),
        ],
        read=medians,
    )


def _ratio(value: float) -> str:
    return wording.NOT_MEASURED if np.isnan(value) else f"{value:.2f}"
