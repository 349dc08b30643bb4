"""Every table at once, from any number of runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import pandas as pd
import xarray as xr

from headcount.analysis.accuracy import accuracy_table
from headcount.analysis.agreement import score_agreement
from headcount.analysis.curves import (
    against_random,
    curve_points,
    curve_table,
    rank_correlation,
    removable_by_score,
    top_overlap,
)
from headcount.analysis.distributions import cumulative, distances, layer_profile
from headcount.analysis.divergence import divergence_table
from headcount.analysis.inactivity import frequency_table, group_frequency, head_frequency
from headcount.analysis.outcomes import by_benchmark, main_metric
from headcount.analysis.removable import removable_table
from headcount.analysis.search import decided_shares
from headcount.analysis.sequential import UntilDecided
from headcount.analysis.stability import head_stability, threshold_stability, threshold_transfer
from headcount.summaries import Summary
from headcount.units import UnitMap


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What one run holds; parts that it does not have are None.

    Attributes:
        model: its name, the same for all runs of a model.
        data: name of the benchmarks or texts.
        tasks: the benchmarks asked for.
        outcomes: one row a policy and question.
        until_decided: by which rule policies were stopped; None where every question was asked.
        num_questions: of the whole benchmark, for that rule.
        scores: one variable a score, dims (example, layer, head), or their summary.
        thresholds: one variable a score, dim (share,).
        units: the model's layers.
    """

    model: str
    data: str
    tasks: Sequence[str] = ()
    outcomes: pd.DataFrame | None = None
    until_decided: UntilDecided | None = None
    num_questions: int = 0
    scores: xr.Dataset | Summary | None = None
    thresholds: xr.Dataset | None = None
    units: UnitMap | None = None


def all_tables(
    runs: Sequence[Saved],
    *,
    metric: str | None = None,
    higher_is_better: bool | None = None,
    margin: float = 0.01,
    confidence: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
    published: pd.DataFrame | None = None,
) -> dict[str, pd.DataFrame]:
    """Every table that the runs allow.

    Args:
        runs: of one or several models, on one or several data each.
        metric: that accuracy is measured by; as from ``main_metric`` if not given.
        higher_is_better: which way ``metric`` is better, where its tasks are not to be asked.
        margin: the fall that is tolerated.
        confidence: of intervals and verdicts.
        resamples: bootstrap draws.
        seed: of the draws.
        published: curves of other models to compare ranks with, as from ``curve_table``.

    Returns:
        Data frames by name, each with model and task (a benchmark) or data (of a run) in front. Of answers: ``accuracy``,
        ``removable`` (with the relative margin beside the absolute one, areas and ranks; none of a metric that is not judged),
        ``points``, ``by_score``,
        ``ranks`` (correlation and overlap of every two), ``divergence`` (how far answers move: their KL divergence from
        the untouched model's, and the log-likelihood of the right answer, or of texts; alone where there is no metric);
        or, where questions were asked until it was decided, ``decided`` (each policy's verdict) and ``searched`` (between
        which shares removable shares lie). Of scores:
        ``inactive`` (heads and groups always, sometimes and never inactive), ``heads`` (how often each is),
        ``cumulative``, and not from a summary ``groups``, ``agreement`` and ``layers``. Where a model has several data
        ``thresholds``, ``transfer`` and ``stability``; where data have several models ``distances``. Only those that hold
        something.

    Raises:
        InputError: a metric or margin that cannot be used.
    """
    options = {"margin": margin, "confidence": confidence, "resamples": resamples, "seed": seed}
    found: dict[str, list[pd.DataFrame]] = {}

    def keep(name: str, table: pd.DataFrame, **labels: str) -> None:
        found.setdefault(name, []).append(pd.DataFrame({**labels, **table}) if len(table) else table)

    for run in runs:
        if run.until_decided is not None and run.outcomes is not None and len(run.outcomes):
            decided = run.until_decided.table(run.outcomes, run.num_questions)
            labels = {"model": run.model, "data": run.data}
            of_rule = {name: getattr(run.until_decided, name) for name in ("metric", "margin", "confidence")}
            keep("decided", decided.assign(**of_rule), **labels)
            keep("searched", decided_shares(decided), **labels)
        for task, outcomes in _benchmarks(run):
            chosen = metric or main_metric(outcomes)
            if chosen is not None:
                of_metric = options | {"metric": chosen, "higher_is_better": higher_is_better}
                of_policies = accuracy_table(outcomes, **of_metric)
                keep("accuracy", of_policies.assign(metric=chosen), model=run.model, task=task)
                if of_policies["higher_is_better"].iloc[0] is not None:
                    keep("points", curve_points(of_policies, model=run.model, task=task))
                    removable = removable_table(outcomes, **of_metric)
                    relative = removable_table(outcomes, relative=True, **of_metric)
                    keep("removable", _with_relative(removable, relative), model=run.model, task=task)
            moved = divergence_table(outcomes, confidence=confidence, resamples=resamples, seed=seed)
            keep("divergence", moved, model=run.model, task=task)
        if run.scores is not None and run.thresholds is not None:
            labels = {"model": run.model, "data": run.data}
            heads = head_frequency(run.scores, run.thresholds)
            groups = None
            if isinstance(run.scores, xr.Dataset):
                keep("agreement", _pairs(score_agreement(run.scores, run.thresholds)), **labels)
                if run.units is not None:
                    groups = group_frequency(run.scores, run.thresholds, run.units)
            keep("inactive", frequency_table(heads, groups), **labels)
            keep("heads", _long(heads, "frequency"), **labels)
            if groups is not None:
                keep("groups", _long(groups, "frequency"), **labels)
        if isinstance(run.scores, xr.Dataset):
            keep("layers", layer_profile(run.scores), model=run.model, data=run.data)
        if run.scores is not None:
            keep("cumulative", cumulative(run.scores), model=run.model, data=run.data)
    for model, of_model in _by(runs, "model"):
        for name, table in _across_data(of_model):
            keep(name, table, model=model)
    for data, of_data in _by(runs, "data"):
        scores = {run.model: run.scores for run in of_data if run.scores is not None}
        if len(scores) > 1:
            keep("distances", distances(scores), data=data)
    tables = {name: pd.concat(frames, ignore_index=True) for name, frames in found.items()}
    if len(tables.get("points", ())):
        curves = curve_table(tables["points"], margin=margin)
        tables["points"] = against_random(tables["points"])
        tables["removable"] = tables["removable"].merge(
            curves[["model", "task", "score", "baseline", "normalised_area", "rank"]], on=["model", "task", "score"]
        )
        tables["by_score"] = removable_by_score(curves)
        tables["ranks"] = _ranks(curves if published is None else pd.concat([curves, published], ignore_index=True))
    return {name: table for name, table in tables.items() if len(table)}


def _benchmarks(run: Saved) -> Iterator[tuple[str, pd.DataFrame]]:
    if run.outcomes is not None and len(run.outcomes) and run.until_decided is None:
        yield from by_benchmark(run.outcomes, run.tasks).items()


def _by(runs: Sequence[Saved], attribute: str) -> Iterator[tuple[str, list[Saved]]]:
    def key(run: Saved) -> str:
        return getattr(run, attribute)

    for name, group in groupby(sorted(runs, key=key), key):
        yield name, list(group)


def _across_data(runs: Sequence[Saved]) -> Iterator[tuple[str, pd.DataFrame]]:
    """What one model's thresholds and heads do from one data to another."""
    cuts = {run.data: run.thresholds for run in runs if run.thresholds is not None}
    scores = {run.data: run.scores for run in runs if run.scores is not None and run.thresholds is not None}
    if len(cuts) > 1:
        spread = threshold_stability(cuts)
        yield "thresholds", spread.melt(["score", "share", "spread"], var_name="data", value_name="threshold")
    if len(scores) > 1:
        yield "transfer", threshold_transfer(scores, {name: cuts[name] for name in scores})
        yield "stability", head_stability({name: head_frequency(scores[name], cuts[name]) for name in scores})


def _with_relative(absolute: pd.DataFrame, relative: pd.DataFrame) -> pd.DataFrame:
    columns = ["removable_share", "is_lower_bound", "low", "high", "share_shown"]
    return absolute.join(relative[columns].add_suffix("_relative"))


def _long(of_scores: xr.Dataset, value: str) -> pd.DataFrame:
    """One row a score and place; places that a model does not have are left out."""
    frame = of_scores.to_array("score", name=value).to_dataframe().reset_index()
    return frame.dropna(subset=[value]).reset_index(drop=True)


def _pairs(agreement: xr.Dataset) -> pd.DataFrame:
    frame = agreement.to_dataframe().reset_index()
    return frame.loc[frame["score"] != frame["other"]].reset_index(drop=True)


def _ranks(curves: pd.DataFrame) -> pd.DataFrame:
    """Correlation and overlap of every two (model, task), each pair once."""
    correlation, overlap = rank_correlation(curves), top_overlap(curves)
    names = list(overlap.index)
    rows = [
        (*one, *other, correlation.loc[one, other], overlap.loc[one, other])
        for number, one in enumerate(names)
        for other in names[:number]
    ]
    columns = ["model", "task", "other_model", "other_task", "rank_correlation", "top_5_overlap"]
    return pd.DataFrame(rows, columns=columns)
