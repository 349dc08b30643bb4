"""A run's tables and a study's: each is made once, when it is asked for, with one set of ``Statistics``."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from operator import attrgetter

import pandas as pd
import xarray as xr

from headcount.analysis.accuracy import accuracy_table
from headcount.analysis.agreement import score_agreement
from headcount.analysis.curves import (
    against_random,
    curve_points,
    curve_table,
    rank_correlation,
    removable_by_curve,
    top_overlap,
)
from headcount.analysis.distributions import cumulative, distances, extremes, layer_profile
from headcount.analysis.divergence import divergence_table
from headcount.analysis.inactivity import (
    counted_by_layer,
    counted_table,
    frequency_table,
    group_frequency,
    head_frequency,
)
from headcount.analysis.outcomes import by_benchmark, check_metric, main_metric
from headcount.analysis.removable import COLUMNS, removable_table
from headcount.analysis.search import decided_shares
from headcount.analysis.sequential import UntilDecided
from headcount.analysis.stability import head_stability, threshold_stability, threshold_transfer
from headcount.analysis.statistics import Statistics
from headcount.metrics import Metric
from headcount.summaries import Summary
from headcount.units import KindId, UnitMap


class Answers:
    """The tables of some questions' answers by one metric.

    Args:
        outcomes: one row a policy and question.
        metric: that accuracy is measured by; as from ``main_metric`` if not given, so None where there is none.
        higher_is_better: which way it is better, where its tasks are not to be asked.
    """

    def __init__(
        self, outcomes: pd.DataFrame, *, metric: str | None = None, higher_is_better: bool | None = None,
        statistics: Statistics | None = None,
    ) -> None:  # fmt: skip
        self.outcomes, self.statistics = outcomes, statistics or Statistics()
        self.metric = metric or main_metric(outcomes)
        self.of_metric = {"metric": self.metric, "higher_is_better": higher_is_better}

    @cached_property
    def judged(self) -> Metric:
        """``metric``, and which way it is better. Raises InputError for one that the outcomes do not have."""
        name = check_metric(self.outcomes, str(self.metric))
        return Metric.of(self.outcomes, name, self.of_metric["higher_is_better"])

    @cached_property
    def accuracy(self) -> pd.DataFrame:
        """As from ``accuracy_table``. Raises InputError without a baseline or the metric."""
        return accuracy_table(self.outcomes, **self.of_metric, **vars(self.statistics))

    @cached_property
    def removable(self) -> pd.DataFrame:
        """As from ``removable_table``; of a metric that is not judged no row."""
        if self.judged.higher_is_better is None:
            return pd.DataFrame({name: [] for name in COLUMNS})
        return removable_table(self.outcomes, **self.of_metric, **vars(self.statistics))

    @cached_property
    def divergence(self) -> pd.DataFrame:
        """As from ``divergence_table``; empty where the outcomes hold nothing for it."""
        draws = {name: value for name, value in vars(self.statistics).items() if name != "margin"}
        return divergence_table(self.outcomes, **draws)

    @cached_property
    def tasks(self) -> list[str]:
        """Those that the metric was measured on."""
        return [str(task) for task in self.outcomes.loc[self.outcomes[self.metric].notna(), "task"].unique()]


@dataclass(frozen=True, kw_only=True)
class RunTables:
    """The tables of one run; what it does not hold is None here, and so are the tables of it.

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
        metric, higher_is_better, statistics: as ``Answers`` takes them.
    """

    model: str = ""
    data: str = ""
    tasks: Sequence[str] = ()
    outcomes: pd.DataFrame | None = None
    until_decided: UntilDecided | None = None
    num_questions: int = 0
    scores: xr.Dataset | Summary | None = None
    thresholds: xr.Dataset | None = None
    units: UnitMap | None = None
    metric: str | None = None
    higher_is_better: bool | None = None
    statistics: Statistics = field(default_factory=Statistics)

    @cached_property
    def answers(self) -> Answers | None:
        """To all questions together; None where none was asked, or they were stopped by their answers.

        Intervals of a fixed size do not hold for those.
        """
        if self.outcomes is None or self.outcomes.empty or self.until_decided is not None:
            return None
        return self._answers(self.outcomes)

    @cached_property
    def benchmarks(self) -> dict[str, Answers]:
        """Those to each benchmark that was asked for; what it is measured by is its own, where nothing else was asked."""
        if self.answers is None:
            return {}
        parts = by_benchmark(self.answers.outcomes, self.tasks)
        return {name: self.answers if len(parts) == 1 else self._answers(part) for name, part in parts.items()}

    def _answers(self, outcomes: pd.DataFrame) -> Answers:
        return Answers(outcomes, metric=self.metric, higher_is_better=self.higher_is_better, statistics=self.statistics)

    @cached_property
    def decided(self) -> pd.DataFrame | None:
        """Each policy's verdict, as from ``sequential_table``, and by which rule; None where every question was asked."""
        if self.until_decided is None or self.outcomes is None or self.outcomes.empty:
            return None
        rule = {name: getattr(self.until_decided, name) for name in ("metric", "margin", "confidence")}
        return self.until_decided.table(self.outcomes, self.num_questions).assign(**rule)

    @cached_property
    def frequency(self) -> xr.Dataset | None:
        """As from ``head_frequency``."""
        if self.scores is None or self.thresholds is None:
            return None
        return head_frequency(self.scores, self.thresholds)

    @property
    def known_units(self) -> UnitMap | None:
        """``units``; None where they are of other layers than the scores."""
        if self.units is None or not isinstance(self.scores, xr.Dataset):
            return self.units
        return self.units if self.units.layer_indices == self.scores["layer"].values.tolist() else None

    @cached_property
    def groups(self) -> xr.Dataset | None:
        """As from ``group_frequency``; None from a summary."""
        if not isinstance(self.scores, xr.Dataset) or self.thresholds is None or self.known_units is None:
            return None
        if self.kind != "head":
            return None
        return group_frequency(self.scores, self.thresholds, self.known_units)

    @cached_property
    def inactive(self) -> pd.DataFrame | None:
        """As from ``frequency_table``."""
        if isinstance(self.scores, Summary) and self.thresholds is not None and counted_by_layer(self.scores):
            return counted_table(self.scores, self.thresholds)
        return None if self.frequency is None else frequency_table(self.frequency, self.groups)

    @property
    def kind(self) -> KindId:
        """What was measured and off."""
        return "head" if self.units is None else self.units.kind

    @cached_property
    def agreement(self) -> xr.Dataset | None:
        """As from ``score_agreement``; None from a summary."""
        if not isinstance(self.scores, xr.Dataset) or self.thresholds is None:
            return None
        return score_agreement(self.scores, self.thresholds)


def _accuracy(answers: Answers) -> pd.DataFrame | None:
    return None if answers.metric is None else answers.accuracy.assign(metric=answers.metric)


def _points(answers: Answers) -> pd.DataFrame | None:
    if answers.metric is None or answers.judged.higher_is_better is None:
        return None
    return curve_points(answers.accuracy, model="", task="")


def _removable(answers: Answers) -> pd.DataFrame | None:
    if answers.metric is None or answers.removable.empty:
        return None
    relative = removable_table(answers.outcomes, **answers.of_metric, **vars(answers.statistics), relative=True)
    return answers.removable.join(relative[COLUMNS[1:-1]].add_suffix("_relative"))


#: A study's tables in their order, by where their rows come from. Of answers, with model and task (a benchmark) in front:
_OF_ANSWERS: Mapping[str, Callable[[Answers], pd.DataFrame | None]] = {
    "accuracy": _accuracy,
    "points": _points,
    "removable": _removable,
    "divergence": lambda answers: answers.divergence,
}
#: Of runs, with model and data.
_OF_RUNS: Mapping[str, Callable[[RunTables], pd.DataFrame | None]] = {
    "decided": lambda run: run.decided,
    "searched": lambda run: None if run.decided is None else decided_shares(run.decided),
    "agreement": lambda run: _pairs(run.agreement),
    "inactive": lambda run: run.inactive,
    "heads": lambda run: None if counted_by_layer(run.scores) else _long(run.frequency, "frequency"),
    "by_layer": lambda run: _long(run.frequency, "frequency") if counted_by_layer(run.scores) else None,
    "extremes": lambda run: (
        extremes(run.scores) if isinstance(run.scores, Summary) and counted_by_layer(run.scores) else None
    ),
    "groups": lambda run: _long(run.groups, "frequency"),
    "layers": lambda run: _layers(run.scores),
    "cumulative": lambda run: None if run.scores is None else cumulative(run.scores),
}


def all_tables(runs: Sequence[RunTables], *, published: pd.DataFrame | None = None) -> dict[str, pd.DataFrame]:
    """Every table that the runs allow.

    Args:
        runs: of one or several models, on one or several data each.
        published: curves of other models to compare ranks with, as from ``curve_table``.

    Returns:
        Data frames by name, each with model and task (a benchmark) or data (of a run) in front: those above, and
        ``by_curve`` and ``ranks`` (correlation and overlap of every two) of all curves; where a model has several data
        ``thresholds``, ``transfer`` and ``stability``; where data have several models ``distances``. ``removable`` has the
        relative margin beside the absolute one, areas and ranks. Only those that hold something.

    Raises:
        InputError: a metric or margin that cannot be used.
    """
    found: dict[str, list[pd.DataFrame]] = {}

    def keep(name: str, table: pd.DataFrame | None, **labels: str) -> None:
        if table is not None and len(table):
            found.setdefault(name, []).append(pd.DataFrame({**labels, **table, **labels}))

    for run in runs:
        for task, answers in run.benchmarks.items():
            for name, of_answers in _OF_ANSWERS.items():
                keep(name, of_answers(answers), model=run.model, task=task)
        for name, of_run in _OF_RUNS.items():
            keep(name, of_run(run), model=run.model, data=run.data)
    for model, of_model in _by(runs, "model"):
        for name, table in _across_data(of_model):
            keep(name, table, model=model)
    for data, of_data in _by(runs, "data"):
        scores = {run.model: run.scores for run in of_data if run.scores is not None}
        if len(scores) > 1:
            keep("distances", distances(scores), data=data)
    tables = {name: pd.concat(frames, ignore_index=True) for name, frames in found.items()}
    return tables | _of_curves(tables, runs, published) if "points" in tables else tables


def _of_curves(
    tables: Mapping[str, pd.DataFrame], runs: Sequence[RunTables], published: pd.DataFrame | None
) -> dict[str, pd.DataFrame]:
    """What follows from all curves together."""
    curves = curve_table(tables["points"], margin=runs[0].statistics.margin)
    where = ["model", "task", "curve"]
    judged = tables["removable"].merge(curves[[*where, "baseline", "normalised_area", "rank"]], on=where)
    ranks = _ranks(curves if published is None else pd.concat([curves, published], ignore_index=True))
    found = {"points": against_random(tables["points"]), "removable": judged, "by_curve": removable_by_curve(curves)}
    return found | ({"ranks": ranks} if len(ranks) else {})


def _by(runs: Sequence[RunTables], attribute: str) -> Iterator[tuple[str, list[RunTables]]]:
    for name, group in groupby(sorted(runs, key=attrgetter(attribute)), attrgetter(attribute)):
        yield name, list(group)


def _across_data(runs: Sequence[RunTables]) -> Iterator[tuple[str, pd.DataFrame]]:
    """What one model's thresholds and heads do from one data to another."""
    cuts = {run.data: run.thresholds for run in runs if run.thresholds is not None}
    if len(cuts) > 1:
        spread = threshold_stability(cuts)
        yield "thresholds", spread.melt(["score", "share", "spread"], var_name="data", value_name="threshold")
    often = {run.data: run.frequency for run in runs if run.frequency is not None and not counted_by_layer(run.scores)}
    if len(often) > 1:
        scores = {run.data: run.scores for run in runs if run.scores is not None and run.data in often}
        yield "transfer", threshold_transfer(scores, {name: cuts[name] for name in scores})
        yield "stability", head_stability(often)


def _layers(scores: xr.Dataset | Summary | None) -> pd.DataFrame | None:
    """As from ``layer_profile``; None from a summary that counts units by themselves."""
    if scores is None or not (isinstance(scores, xr.Dataset) or counted_by_layer(scores)):
        return None
    return layer_profile(scores)


def _long(of_scores: xr.Dataset | None, value: str) -> pd.DataFrame | None:
    """One row a score and place; places that a model does not have are left out."""
    if of_scores is None:
        return None
    frame = of_scores.to_array("score", name=value).to_dataframe().reset_index()
    return frame.dropna(subset=[value]).reset_index(drop=True)


def _pairs(agreement: xr.Dataset | None) -> pd.DataFrame | None:
    if agreement is None:
        return None
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
