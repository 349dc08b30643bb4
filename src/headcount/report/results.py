"""A run's saved results, and the tables that page and figures both read from them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from headcount.analysis import (
    accuracy_table,
    curve_points,
    curve_table,
    divergence_table,
    frequency_table,
    group_frequency,
    head_frequency,
    layer_profile,
    removable_table,
    score_agreement,
)
from headcount.analysis.divergence import per_token
from headcount.analysis.outcomes import MEASURES, main_metric, metrics_of
from headcount.analysis.removable import COLUMNS as REMOVABLE
from headcount.errors import InputError, RunError, nearest
from headcount.metrics import Metric
from headcount.policies import BASELINE
from headcount.report.wording import judged_in, shown
from headcount.scores import facts_of
from headcount.store import Manifest, Run
from headcount.study.cuts import known_scores, saved_thresholds
from headcount.study.progress import whats_left
from headcount.study.verdicts import decided_table
from headcount.summaries import Summary
from headcount.thresholding import said_not_finite, thresholds
from headcount.units import UnitMap

MARGIN = 0.01  # the paper's "within 1 point"
CONFIDENCE = 0.95
TOGETHER = "all questions"  # in the place of a task's name
_MOST_TASKS = 12  # that are shown one by one beside all questions together
_DRAWS = 2_000  # of a bootstrap of means that are not of 0 and 1


@dataclass(frozen=True, kw_only=True)
class RunResults:
    """What a report is made from; parts that the run does not have are None.

    Args:
        manifest: facts about the run; all optional. The metric is ``settings.metric`` if given, else as from
            ``main_metric``.
        left: how much is not there of what was asked for, in a sentence.
        scores: one variable a score, dims (example, layer, head).
        summarised: for a run that kept a summary the number of its inputs; ``scores`` are then evenly spaced quantiles of
            each head, and what two heads do on one input is not known.
        thresholds: one variable a score, dim (share,).
        outcomes: one row a policy and question; not of a run whose questions were asked until it was decided, since
            intervals of a fixed size do not hold there.
        decided: of such a run, each policy's verdict.
    """

    manifest: Manifest
    left: str = ""
    scores: xr.Dataset | None = None
    summarised: int | None = None
    thresholds: xr.Dataset | None = None
    outcomes: pd.DataFrame | None = None
    decided: pd.DataFrame | None = None

    @property
    def model(self) -> str:
        return shown(self.manifest.model.name or "Unnamed model")

    @property
    def fingerprint(self) -> str:
        """Of the model's weights; empty if the manifest does not say."""
        return self.manifest.model.fingerprint or ""

    @property
    def data(self) -> str:
        """The tasks or texts in a few words; empty if the manifest does not say."""
        return shown(", ".join(self.manifest.data.tasks or self.manifest.data.texts))

    @cached_property
    def metric(self) -> str:
        """What accuracy is measured by. Raises InputError for one that the outcomes do not have."""
        assert self.outcomes is not None
        known = metrics_of(self.outcomes)
        metric = str(self.manifest.settings.metric or main_metric(self.outcomes))
        if metric not in known:
            raise InputError(f"Unknown metric {metric!r}. {nearest(metric, known) if known else 'There is none here.'}")
        return metric

    @cached_property
    def judged(self) -> Metric:
        """``metric``, and which way it is better: as ``settings.higher_is_better`` says, or else its tasks."""
        assert self.outcomes is not None
        return Metric.of(self.outcomes, self.metric, self.manifest.settings.higher_is_better)

    @property
    def asked(self) -> bool:
        """Whether a benchmark's questions were asked."""
        return self.outcomes is not None and not self.outcomes.empty

    @property
    def evaluated(self) -> bool:
        """Whether there is a metric to measure accuracy by; perplexity alone gives none."""
        return self.outcomes is not None and self.asked and main_metric(self.outcomes) is not None

    @property
    def metrics(self) -> list[Metric]:
        """What the run was judged by: one, or none where there are no answers."""
        if self.decided is not None and len(self.decided) and self.manifest.until_decided is not None:
            return [judged_in(self.decided, self.manifest.until_decided.metric)]
        return [self.judged] if self.evaluated else []

    @property
    def beside_paper(self) -> bool:
        """Whether there are removable shares that can stand beside the paper's, which are within 1 point of accuracy."""
        return self.evaluated and not self.removable.empty and self.judged.is_accuracy

    @property
    def measured(self) -> bool:
        return self.scores is not None and bool(self.scores.data_vars)

    @property
    def has_cuts(self) -> bool:
        """Whether any measured score has thresholds."""
        return self.scores is not None and any(name in self.cuts for name in self.scores.data_vars)

    @cached_property
    def cuts(self) -> xr.Dataset:
        """The saved thresholds, or else those at the paper's shares; none of scores whose direction nothing tells."""
        assert self.scores is not None
        if self.thresholds is not None:
            return self.thresholds
        known = [
            name
            for name, values in self.scores.data_vars.items()
            if facts_of(str(name), self.scores) and bool(values.notnull().any())
        ]
        return thresholds(self.scores[known]) if known else xr.Dataset(coords={"share": []})

    @cached_property
    def left_out(self) -> list[str]:
        """Of each score of ``cuts`` that has values that are not finite, how many, in a sentence."""
        return [said_not_finite(shown(name, 40), cut.attrs) for name, cut in self.cuts.data_vars.items() if cut.attrs]

    @cached_property
    def accuracy(self) -> pd.DataFrame:
        """One row a policy, as from ``accuracy_table``. Raises InputError without a baseline or the metric."""
        assert self.outcomes is not None
        return accuracy_table(self.outcomes, **self._of_metric)

    @property
    def _of_metric(self) -> dict[str, Any]:
        way = self.judged.higher_is_better
        return {"metric": self.metric, "higher_is_better": way, "margin": MARGIN, "confidence": CONFIDENCE}

    @cached_property
    def removable(self) -> pd.DataFrame:
        """One row a score, the largest removable share first, random last; none of a metric that is not judged."""
        assert self.outcomes is not None
        if self.judged.higher_is_better is None:
            return pd.DataFrame({name: [] for name in REMOVABLE})
        table = removable_table(self.outcomes, **self._of_metric)
        table = table.sort_values("removable_share", ascending=False, kind="stable")
        return table.sort_values("score", key=lambda score: score == "random", kind="stable", ignore_index=True)

    @property
    def num_inputs(self) -> int:
        """Inputs that were measured."""
        if self.summarised is not None:
            return self.summarised
        return 0 if self.scores is None else int(self.scores.sizes["example"])

    @cached_property
    def units(self) -> UnitMap | None:
        """Which heads the model has, from the manifest; None where that does not say, or speaks of other layers."""
        units = self.manifest.model.units
        if units is None or self.scores is None:
            return units
        return units if units.layer_indices == self.scores["layer"].values.tolist() else None

    @cached_property
    def agreement(self) -> xr.Dataset:
        """As from ``score_agreement``, at the shares of ``cuts``."""
        assert self.scores is not None
        return score_agreement(self.scores, self.cuts)

    @cached_property
    def frequency(self) -> xr.Dataset:
        """As from ``head_frequency``, at the shares of ``cuts``."""
        assert self.scores is not None
        return head_frequency(self.scores, self.cuts)

    @cached_property
    def frequencies(self) -> pd.DataFrame:
        """As from ``frequency_table``, with key-value groups where the manifest names them."""
        assert self.scores is not None
        groups = None
        if self.units and self.summarised is None:
            groups = group_frequency(self.scores, self.cuts, self.units)
        return frequency_table(self.frequency, groups)

    @cached_property
    def profile(self) -> pd.DataFrame:
        """As from ``layer_profile``."""
        assert self.scores is not None
        return layer_profile(self.scores)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """As from ``curve_table``: all questions together, and each task by itself where there are 2 to 6."""
        assert self.outcomes is not None
        points = [curve_points(self.accuracy, model=self.model, task=TOGETHER)]
        if 2 <= len(self.tasks) <= 6:
            for task in self.tasks:
                of_task = self.outcomes.loc[self.outcomes["task"] == task]
                accuracy = accuracy_table(of_task, **self._of_metric)
                points.append(curve_points(accuracy, model=self.model, task=task))
        return curve_table(pd.concat(points, ignore_index=True), margin=MARGIN)

    @cached_property
    def divergence(self) -> pd.DataFrame:
        """As from ``divergence_table``, with ``task`` and ``per_token``: all questions together, then task by task.

        All together only where they are of one kind: log-likelihoods of answers and of texts have no common mean.
        """
        if not self.asked:
            return pd.DataFrame()
        assert self.outcomes is not None
        known = self.outcomes.loc[self.outcomes.reindex(columns=list(MEASURES)).notna().any(axis="columns")]
        parts = {str(name): of_task for name, of_task in known.groupby("task", sort=False)}
        kinds = {per_token(of_task) for of_task in parts.values()}
        shown = {TOGETHER: known} if len(parts) > 1 and len(kinds) == 1 else {}
        shown |= parts if len(parts) <= _MOST_TASKS else {}
        tables = [
            divergence_table(of_task, confidence=CONFIDENCE, resamples=_DRAWS).assign(
                task=name, per_token=per_token(of_task)
            )
            for name, of_task in shown.items()
        ]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

    @cached_property
    def ranks(self) -> pd.DataFrame:
        """Ranks from ``curves``: rows scores, the best first; columns tasks, all questions together first."""
        curves = self.curves
        ranks = {str(task): rows.set_index("score")["rank"] for task, rows in curves.groupby("task", sort=False)}
        wide = pd.DataFrame(ranks)
        return wide.iloc[wide[TOGETHER].argsort(kind="stable")]

    @cached_property
    def tasks(self) -> list[str]:
        """Tasks that the metric was measured on."""
        assert self.outcomes is not None
        return [str(task) for task in self.outcomes.loc[self.outcomes[self.metric].notna(), "task"].unique()]

    @cached_property
    def chance(self) -> float | None:
        """Accuracy of guessing: mean of 1 / choices over the baseline's questions; None when that is not known."""
        assert self.outcomes is not None
        if self.metric not in ("acc", "acc_norm") or "loglikelihoods" not in self.outcomes.columns:
            return None
        asked = self.outcomes[(self.outcomes["policy"] == BASELINE) & self.outcomes[self.metric].notna()]
        choices = [
            0 if values is None or pd.api.types.is_scalar(values) else len(values) for values in asked["loglikelihoods"]
        ]
        return sum(1 / count for count in choices) / len(choices) if choices and min(choices) > 1 else None

    def possible(self, accuracies: Iterable[float]) -> list[float]:
        """Bounds of accuracies, none beyond 0 and 1 where every question is worth between 0 and 1."""
        assert self.outcomes is not None
        return [min(max(value, 0.0), 1.0) if self.judged.is_share else value for value in accuracies]

    def facts(self) -> Iterator[tuple[str, str]]:
        """Every entry of the manifest but the command as (dotted name, text), nested mappings opened."""
        hidden = ("command", "thresholds", "scores", "files", "metrics")
        return _facts({name: value for name, value in self.manifest.facts().items() if name not in hidden})


def read_results(run: Run, *, metric: str | None = None, higher_is_better: bool | None = None) -> RunResults:
    """The results of a run on disk.

    Args:
        run: it.
        metric: that accuracy is measured by; as from ``main_metric`` if not given.
        higher_is_better: which way it is better, where its tasks are not to be asked.

    Raises:
        InputError: questions were asked until it is decided by a metric of which nobody says which way it is better.
        RunError: nothing was measured or evaluated yet, or the run cannot be read.
    """
    scores, summary, outcomes = run.scores(), None, run.outcomes()
    if scores is None and (summary := run.summary()) is not None:
        scores = _quantiles(summary)
    cuts = None if scores is None else saved_thresholds(run, scores)
    if summary is not None and scores is not None and cuts is None:
        known = [name for name in known_scores(summary) if bool(scores[name].notnull().any())]
        cuts = thresholds(summary[known]) if known else None
    decided = decided_table(run, higher_is_better)
    if decided is not None:
        outcomes = None
    if scores is None and outcomes is None and decided is None:
        raise RunError(
            f"{str(run.path)!r} holds neither scores nor outcomes yet. Run `headcount measure` or `evaluate` first."
        )
    said = {"metric": metric, "higher_is_better": higher_is_better}
    said = {name: value for name, value in said.items() if value is not None}
    return RunResults(
        manifest=run.manifest.changed(settings=run.settings.facts() | said) if said else run.manifest,
        left=whats_left(run),
        scores=scores,
        summarised=summary and summary.num_inputs,
        thresholds=cuts,
        outcomes=outcomes,
        decided=decided,
    )


def _quantiles(summary: Summary) -> xr.Dataset:
    """A summary as scores of 201 inputs: each head's quantiles, its smallest and its largest value among them."""
    shares = np.linspace(0, 1, 201)
    scores = {
        name: (("example", "layer", "head"), of_score.head_quantiles(shares).astype(np.float32))
        for name, of_score in summary.scores.items()
    }
    heads = summary.heads.sizes["head"]
    return xr.Dataset(scores, coords={"layer": summary.layers, "head": np.arange(heads)}, attrs=summary.attrs)


def _facts(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _facts(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            yield shown(prefix + name), f"{len(value)} entries"
        elif value is not None and value != []:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            yield shown(prefix + name), shown(text, 400)
