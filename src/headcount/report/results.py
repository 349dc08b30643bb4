"""A run's tables, and beside them what only the page and the figures show."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import pandas as pd
import xarray as xr

from headcount.analysis import (
    Answers,
    RunTables,
    Statistics,
    curve_points,
    curve_table,
    distances,
    head_stability,
    layer_profile,
    threshold_stability,
)
from headcount.analysis.divergence import per_token
from headcount.analysis.inactivity import counted_by_layer
from headcount.analysis.outcomes import MEASURES
from headcount.errors import RunError
from headcount.metrics import Metric
from headcount.report.head_map import head_maps
from headcount.report.wording import best_first, judged_in, shown
from headcount.store import Manifest, Run
from headcount.study.analysing import read_tables
from headcount.study.cuts import usual_thresholds
from headcount.study.progress import whats_left
from headcount.summaries import Summary
from headcount.thresholding import said_not_finite
from headcount.units import KINDS, Kind, LayerUnits

MARGIN, CONFIDENCE = Statistics.margin, Statistics.confidence
TOGETHER = "all questions"  # in the place of a task's name
_MOST_TASKS = 12  # that are shown one by one beside all questions together


@dataclass(frozen=True, kw_only=True)
class RunResults:
    """What a report is made from.

    Args:
        manifest: facts about the run; all optional.
        tables: its tables.
        left: how much is not there of what was asked for, in a sentence.
    """

    manifest: Manifest
    tables: RunTables
    left: str = ""

    @classmethod
    def of(
        cls, manifest: Manifest, outcomes: pd.DataFrame | None = None, scores: xr.Dataset | None = None, left: str = ""
    ) -> Self:
        """Those of tables that are not, or not yet, in a run on disk."""
        facts, said = manifest.model, manifest.settings
        tables = RunTables(
            model=facts.name or "", tasks=manifest.data.tasks, outcomes=outcomes, scores=scores,
            thresholds=None if scores is None else usual_thresholds(scores), units=manifest.units, metric=said.metric,
            higher_is_better=said.higher_is_better,
        )  # fmt: skip
        return cls(manifest=manifest, tables=tables, left=left)

    @property
    def model(self) -> str:
        return shown(self.manifest.model.name or "Unnamed model")

    @property
    def data(self) -> str:
        """The tasks or texts in a few words; empty if the manifest does not say."""
        return shown(", ".join(self.manifest.data.tasks or self.manifest.data.texts))

    @property
    def asked(self) -> bool:
        """Whether a benchmark's questions were asked, all of them."""
        return self.tables.answers is not None

    @property
    def evaluated(self) -> bool:
        """Whether there is a metric to measure accuracy by; perplexity alone gives none."""
        return self.tables.answers is not None and self.tables.answers.metric is not None

    @property
    def answers(self) -> Answers:
        """Those to all questions together, where they were asked."""
        assert self.tables.answers is not None
        return self.tables.answers

    @property
    def judged(self) -> Metric:
        return self.answers.judged

    @property
    def decided(self) -> pd.DataFrame | None:
        """As ``RunTables.decided``; None also where it has no rows."""
        return self.tables.decided if self.tables.decided is not None and len(self.tables.decided) else None

    @property
    def metrics(self) -> list[Metric]:
        """What the run was judged by: one, or none where there are no answers."""
        if self.decided is not None:
            return [judged_in(self.decided)]
        return [self.judged] if self.evaluated else []

    @property
    def beside_paper(self) -> bool:
        """Whether there are removable shares that can stand beside the paper's, which are within 1 point of accuracy."""
        return self.has_curves and self.judged.is_accuracy

    @cached_property
    def removable(self) -> pd.DataFrame:
        """The largest removable share first, random last."""
        return best_first(self.answers.removable)

    @property
    def has_curves(self) -> bool:
        """Whether there are removable shares."""
        return self.evaluated and not self.removable.empty

    @cached_property
    def scores(self) -> xr.Dataset | None:
        """One variable a score, dims (example, layer, head); of a summary its quantiles, as if of so many examples.

        Of units counted by layer a layer's quantiles stand for one unit.
        """
        scores = self.tables.scores
        return _quantiles(scores) if isinstance(scores, Summary) else scores

    @property
    def summarised(self) -> bool:
        """Whether a summary was kept: what two heads do on one input is then not known."""
        return isinstance(self.tables.scores, Summary)

    @property
    def drawn(self) -> xr.Dataset | Summary | None:
        """What distributions are drawn of: ``scores``, or the summary where units were counted by layer."""
        return self.tables.scores if self.by_layer else self.scores

    @property
    def by_layer(self) -> bool:
        """Whether units were counted by layer, as neurons are."""
        return counted_by_layer(self.tables.scores)

    @property
    def kind(self) -> Kind:
        """What was measured and off."""
        return KINDS[self.manifest.unit]

    @property
    def num_inputs(self) -> int:
        """Inputs that were measured."""
        if isinstance(self.tables.scores, Summary):
            return self.tables.scores.num_inputs
        return 0 if self.scores is None else int(self.scores.sizes["example"])

    @property
    def measured(self) -> bool:
        return self.scores is not None and bool(self.scores.data_vars)

    @cached_property
    def names(self) -> list[str]:
        """The scores that were measured anywhere."""
        scores = {} if self.scores is None else self.scores.data_vars
        return [str(name) for name, values in scores.items() if bool(values.notnull().any())]

    @property
    def cuts(self) -> xr.Dataset:
        """Thresholds; of no score where there are none."""
        return xr.Dataset(coords={"share": []}) if self.tables.thresholds is None else self.tables.thresholds

    @property
    def has_cuts(self) -> bool:
        """Whether any measured score has thresholds."""
        return self.scores is not None and any(name in self.cuts for name in self.scores.data_vars)

    @cached_property
    def left_out(self) -> list[str]:
        """Of each score of ``cuts`` that has values that are not finite, how many, in a sentence."""
        return [said_not_finite(shown(name, 40), cut.attrs) for name, cut in self.cuts.data_vars.items() if cut.attrs]

    @cached_property
    def profile(self) -> pd.DataFrame:
        """As from ``layer_profile``."""
        scores = self.tables.scores if self.by_layer else self.scores
        assert scores is not None
        return layer_profile(scores)

    def _of(self, task: str) -> Answers:
        """Those to one task's questions, judged as all together are."""
        outcomes = self.answers.outcomes
        of_task = outcomes.loc[outcomes["task"] == task]
        if len(of_task) == len(outcomes):
            return self.answers
        metric = (
            {"metric": self.answers.metric, "higher_is_better": self.judged.higher_is_better} if self.evaluated else {}
        )
        return Answers(of_task, **metric, statistics=self.tables.statistics)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """As from ``curve_table``: all questions together, and each task by itself where there are 2 to 6."""
        tasks = self.answers.tasks if 2 <= len(self.answers.tasks) <= 6 else []
        parts = {TOGETHER: self.answers} | {task: self._of(task) for task in tasks}
        points = [curve_points(part.accuracy, model=self.model, task=task) for task, part in parts.items()]
        return curve_table(pd.concat(points, ignore_index=True), margin=MARGIN)

    @cached_property
    def ranks(self) -> pd.DataFrame:
        """Ranks from ``curves``: rows curves, the best first; columns tasks, all questions together first."""
        ranks = {str(task): rows.set_index("curve")["rank"] for task, rows in self.curves.groupby("task", sort=False)}
        wide = pd.DataFrame(ranks)
        return wide.iloc[wide[TOGETHER].argsort(kind="stable")]

    @cached_property
    def divergence(self) -> pd.DataFrame:
        """As from ``divergence_table``, with ``task`` and ``per_token``: all questions together, then task by task.

        All together only where they are of one kind: log-likelihoods of answers and of texts have no common mean.
        """
        if not self.asked:
            return pd.DataFrame()
        outcomes = self.answers.outcomes
        known = outcomes.loc[outcomes.reindex(columns=list(MEASURES)).notna().any(axis="columns")]
        parts = {str(task): self._of(str(task)) for task in known["task"].unique()}
        kinds = {per_token(part.outcomes) for part in parts.values()}
        shown = {}
        if len(parts) > 1 and len(kinds) == 1:
            whole = self.answers if len(known) == len(outcomes) else Answers(known, statistics=self.tables.statistics)
            shown = {TOGETHER: whole}
        shown |= parts if len(parts) <= _MOST_TASKS else {}
        tables = [part.divergence.assign(task=name, per_token=per_token(part.outcomes)) for name, part in shown.items()]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


@dataclass(frozen=True)
class Report:
    """Runs beside one another: the first is what the page is about."""

    runs: Sequence[RunResults]

    @property
    def run(self) -> RunResults:
        return self.runs[0]

    @cached_property
    def labels(self) -> list[str]:
        """A short name for each run, all different: the model, or the data, or both, and a number where those are the same."""
        return _labels(self.runs)

    @cached_property
    def benchmarks(self) -> dict[str, RunResults]:
        """The runs of the first run's model with thresholds, itself first, by short names."""
        first = self.run.manifest.model.fingerprint
        alike = [run for run in self.runs if run is self.run or (first and run.manifest.model.fingerprint == first)]
        alike = [run for run in alike if run.has_cuts]
        return dict(zip(_labels(alike), alike, strict=True))

    @cached_property
    def stability(self) -> tuple[pd.DataFrame, pd.DataFrame] | None:
        """As from ``threshold_stability`` and ``head_stability``, of ``benchmarks``.

        None with fewer than two, or without a score and share that all have thresholds of.
        """
        if len(self.benchmarks) < 2:
            return None
        thresholds = threshold_stability({name: run.cuts for name, run in self.benchmarks.items()})
        often = {name: run.tables.frequency for name, run in self.benchmarks.items() if not run.by_layer}
        known = {name: frequency for name, frequency in often.items() if frequency is not None}
        heads = head_stability(known) if len(known) > 1 else pd.DataFrame()
        return None if thresholds.empty else (thresholds, heads)

    @cached_property
    def head_maps(self) -> tuple[dict[str, Any] | None, dict[str, str]]:
        """Of the first run, as from ``head_maps``; None and nothing where no head was measured."""
        run, units = self.run, self.run.manifest.units
        if run.scores is None or not run.measured or run.by_layer:
            return None, {}
        layers = (
            [layer for layer in units.layers if isinstance(layer, LayerUnits)] if units and units.kind == "head" else ()
        )
        maps, profiles = head_maps(run.scores, layers)
        return maps | {"inputs": run.num_inputs}, profiles

    @cached_property
    def measured(self) -> dict[str, RunResults]:
        """The runs with scores, by short names."""
        return {name: run for name, run in zip(self.labels, self.runs, strict=True) if run.measured}

    @cached_property
    def distances(self) -> pd.DataFrame:
        """As from ``headcount.analysis.distances``; empty with fewer than two measured runs."""
        scores = {name: run.tables.scores for name, run in self.measured.items() if run.tables.scores is not None}
        return distances(scores) if len(scores) > 1 else pd.DataFrame()


def _labels(runs: Sequence[RunResults]) -> list[str]:
    for names in (
        [run.model for run in runs],
        [run.data or run.model for run in runs],
        [f"{run.model}, {run.data}" for run in runs],
    ):
        if len(set(names)) == len(names):
            return names
    return [f"{run.model}, {run.data} ({number})" for number, run in enumerate(runs, 1)]


def read_results(run: Run, *, metric: str | None = None, higher_is_better: bool | None = None) -> RunResults:
    """The results of a run on disk; the arguments are those of ``read_tables``.

    Raises:
        RunError: nothing was measured or evaluated yet, or the run cannot be read.
    """
    tables = read_tables(run, metric=metric, higher_is_better=higher_is_better)
    if tables.scores is None and tables.outcomes is None:
        raise RunError(
            f"{str(run.path)!r} holds neither scores nor outcomes yet. Run `headcount measure` or `evaluate` first."
        )
    said = {"metric": metric, "higher_is_better": higher_is_better}
    said = {name: value for name, value in said.items() if value is not None}
    manifest = run.manifest.changed(settings=run.settings.facts() | said) if said else run.manifest
    return RunResults(manifest=manifest, left=whats_left(run), tables=tables)


def _quantiles(summary: Summary) -> xr.Dataset:
    """A summary as scores of 201 inputs: each head's quantiles, its smallest and its largest value among them."""
    shares = np.linspace(0, 1, 201)
    scores, heads = {}, 1
    for name, of_score in summary.scores.items():
        quantiles = of_score.part_quantiles(shares).astype(np.float32)
        quantiles = quantiles.reshape(len(shares), len(summary.layers), -1)
        scores[name], heads = (("example", "layer", "head"), quantiles), quantiles.shape[2]
    return xr.Dataset(scores, coords={"layer": summary.layers, "head": np.arange(heads)}, attrs=summary.attrs)
