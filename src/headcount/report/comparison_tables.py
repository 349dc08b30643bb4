"""Tables of runs beside one another and beside the paper's."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from headcount.analysis import distances
from headcount.published import published_table
from headcount.report import wording
from headcount.report.chart_data import stability_tables
from headcount.report.head_tables import nearest_share
from headcount.report.labels import run_labels
from headcount.report.published import paper_ranks
from headcount.report.results import MARGIN, TOGETHER, RunResults
from headcount.report.tables import Table, cell, table

_STABILITY_SHARE = 0.15  # the paper's


def comparison_tables(runs: Sequence[RunResults]) -> Iterator[Table]:
    """Those that the runs give: ranks and the paper for one, stability and distances for several."""
    run = runs[0]
    if run.evaluated and not run.removable.empty:
        yield _ranks(run)
    if run.beside_paper:
        yield _paper(run)
    if (stability := stability_tables(runs)) is not None:
        thresholds, heads, names = stability
        yield _thresholds(thresholds, names)
        yield _heads(heads)
    if len(runs) > 1:
        names = run_labels(runs)
        evaluated = [
            (name, of) for name, of in zip(names, runs, strict=True) if of.evaluated and not of.removable.empty
        ]
        if evaluated:
            yield _removable(evaluated)
        measured = {
            name: of.scores for name, of in zip(names, runs, strict=True) if of.measured and of.scores is not None
        }
        if len(measured) > 1 and not (apart := distances(measured)).empty:
            yield _distances(apart)


def _ranks(run: RunResults) -> Table:
    ranks, curves = run.ranks, run.curves
    side = "lower" if run.judged.sign < 0 else "higher"
    together = curves.loc[curves["task"] == TOGETHER].set_index("score")
    tasks = [str(task) for task in ranks.columns]
    frame = pd.DataFrame({"score": ranks.index})
    frame["normalised_area"] = together["normalised_area"].reindex(ranks.index).to_numpy()
    for task in tasks:
        frame[f"rank on {task}"] = ranks[task].to_numpy()
    frame["paper_mean_rank"] = paper_ranks(ranks.index).to_numpy()
    return table(
        "ranks",
        "Scores ranked by the normalised area under their curves",
        f"The area is the mean {wording.shown(wording.metric_name(run.metric), 40)} over the range of shares "
        "that the score's own curve covers, as in the paper; so "
        "a curve that was measured over smaller shares looks better. "
        f"The {side} the better. The paper's mean rank is that among the same scores, over its 14 models, by accuracy.",
        frame,
        [
            ("Score", lambda row: row.score, False),
            ("Area", lambda row: wording.mean_of(run.judged, row.normalised_area), True),
            *((f"Rank, {task}", cell(2 + at, _rank), True) for at, task in enumerate(tasks)),
            ("Paper's mean rank", lambda row: _rank(row.paper_mean_rank), True),
        ],
    )


def _paper(run: RunResults) -> Table:
    published = published_table()
    own = run.removable.set_index("score")["removable_share"]
    scores = [name for name in published.columns if name not in ("model", "task", "best_score", "best")]
    line = {"model": run.model, "task": ", ".join(run.tasks)} | {score: own.get(score, np.nan) for score in scores}
    best = own.drop(index=["awft", "random"], errors="ignore")
    line |= {"best_score": best.idxmax(), "best": best.max()} if len(best) else {"best_score": "", "best": np.nan}
    frame = pd.concat([pd.DataFrame([line]), published], ignore_index=True)
    shown = ("awft", "ahon_ln", "lthon_ln", "random")
    return table(
        "paper",
        f"Share of heads that can be zeroed within {wording.fall_name(MARGIN, run.judged)}: this run and the paper's models",
        "The paper's on MMLU, 5-shot (its Table 2, recomputed from its points), this run's on its own questions, "
        f"by {wording.names_of([run.judged])}. Best is "
        "the best score but awft, picked on the same data. All scores are in the CSV.",
        frame,
        [
            ("Model", lambda row: row.model, False),
            ("Questions", lambda row: wording.shown(row.task, 40), False),
            *((score, cell(list(frame.columns).index(score), wording.percent), True) for score in shown),
            ("Best", lambda row: wording.percent(row.best), True),
            ("Which", lambda row: row.best_score if isinstance(row.best_score, str) else wording.NOT_MEASURED, False),
        ],
    )


def _thresholds(thresholds: pd.DataFrame, names: list[str]) -> Table:
    share = nearest_share(thresholds["share"].tolist(), _STABILITY_SHARE)
    return table(
        "stability",
        f"Thresholds on each benchmark, at {wording.percent(share, 0)}",
        "Spread is the largest minus the smallest, over their mean. Other shares are in the CSV.",
        thresholds,
        [
            ("Score", lambda row: row.score, False),
            *((name, cell(2 + at, wording.number), True) for at, name in enumerate(names)),
            ("Spread", lambda row: wording.percent(row.spread), True),
        ],
        read=thresholds.loc[thresholds["share"] == share],
    )


def _heads(heads: pd.DataFrame) -> Table:
    share = nearest_share(heads["share"].tolist(), _STABILITY_SHARE)
    return table(
        "stability-heads",
        f"Whether the same heads are inactive on both benchmarks, at {wording.percent(share, 0)}",
        "Correlation is Spearman's, of how often each head is inactive; overlap is that of the heads most often inactive, "
        "as many as the share says.",
        heads,
        [
            ("Score", lambda row: row.score, False),
            ("One", lambda row: row.one, False),
            ("Other", lambda row: row.other, False),
            ("Correlation", lambda row: wording.number(row.correlation), True),
            ("Overlap", lambda row: wording.number(row.iou), True),
        ],
        read=heads.loc[heads["share"] == share],
    )


def _removable(runs: Sequence[tuple[str, RunResults]]) -> Table:
    frame = pd.concat([run.removable.assign(run=name, metric=run.metric) for name, run in runs], ignore_index=True)
    metrics = [run.judged for _, run in runs]
    return table(
        "comparison-removable",
        f"Share of heads that can be zeroed within {wording.margins_of(MARGIN, metrics)}, run by run",
        f"By {wording.names_of(metrics)}. With 95% bootstrap intervals.",
        frame,
        [
            ("Run", lambda row: row.run, False),
            *[("Metric", lambda row: wording.metric_name(row.metric), False)] * (len(set(metrics)) > 1),
            ("Score", lambda row: row.score, False),
            ("Removable share [95%]", wording.removable_with_interval, True),
            ("Measured up to", lambda row: wording.percent(row.largest_share_measured), True),
        ],
    )


def _distances(frame: pd.DataFrame) -> Table:
    return table(
        "distances",
        "Wasserstein distance between the distributions of each score",
        "In the score's unit.",
        frame,
        [
            ("Score", lambda row: row.score, False),
            ("One", lambda row: row.one, False),
            ("Other", lambda row: row.other, False),
            ("Distance", lambda row: wording.number(row.distance), True),
        ],
    )


def _rank(rank: float) -> str:
    return wording.NOT_MEASURED if np.isnan(rank) else f"{rank:.1f}".removesuffix(".0")
