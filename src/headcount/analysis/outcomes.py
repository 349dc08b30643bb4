"""Per-question outcomes: what the tables read from them."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headcount.errors import InputError, nearest
from headcount.metrics import DIRECTIONS, Metric
from headcount.policies import BASELINE, POLICY_COLUMNS

#: Columns that can be averaged like a metric, and are finer than one: they say something near chance too.
MEASURES = ("gold_loglikelihood", "kl_from_baseline")

#: Columns of outcomes that are never a metric of lm-eval's; one of its metrics with such a name is `score,none`.
NOT_METRICS = frozenset({
    *POLICY_COLUMNS, "task", "doc_id", "doc_hash", "target", "loglikelihoods", "response",
    "share_off", "num_inputs", "num_tokens", "items", "heads_off", DIRECTIONS, *MEASURES,
})  # fmt: skip
_NEEDED = ("policy", "curve", "share_asked", "task", "doc_id", "share_off")


@dataclass(frozen=True, kw_only=True)
class PairedOutcomes:
    """One metric of every policy beside the baseline's, question by question (task, doc_id).

    ``values`` and ``share_off`` are NaN where the policy or the baseline has no finite value: only pairs count.
    """

    metric: Metric

    policies: list[str]  # the baseline first, then in order of first appearance
    curves: list[str]  # of each policy; "" for those of none
    shares_asked: list[float]  # of each policy
    values: NDArray[np.float64]  # [question, policy]
    share_off: NDArray[np.float64]  # [question, policy]
    tasks: NDArray[np.intp]  # [question], a number for each task: the strata of the bootstrap
    num_not_finite: NDArray[np.intp]  # [policy], questions of these tasks left out: no finite value here or untouched
    num_lost: NDArray[np.intp]  # [policy], those of them that have one untouched

    @property
    def binary(self) -> bool:
        """Whether every value is 0 or 1."""
        return bool((np.isnan(self.values) | (self.values == 0) | (self.values == 1)).all())

    @property
    def change(self) -> NDArray[np.float64]:
        """``values`` minus the baseline's, [question, policy]."""
        return self.values - self.values[:, :1]

    @property
    def gain(self) -> NDArray[np.float64]:
        """``change`` with the sign with which more is better, [question, policy]: all that judges, judges this."""
        return self.metric.sign * self.change


def by_benchmark(outcomes: pd.DataFrame, asked: Iterable[str]) -> dict[str, pd.DataFrame]:
    """The outcomes of each benchmark that was asked for.

    A group's tasks are named after it (``mmlu_anatomy`` of ``mmlu``); a task that is named after none is its own benchmark.
    """
    longest_first = sorted(asked, key=len, reverse=True)

    def benchmark(task: str) -> str:
        return next((name for name in longest_first if task == name or task.startswith(f"{name}_")), task)

    groups = outcomes.groupby(outcomes["task"].astype(str).map(benchmark), sort=False)
    return {str(name): of_benchmark for name, of_benchmark in groups}


def metrics_of(outcomes: pd.DataFrame) -> list[str]:
    """lm-eval's metrics in ``outcomes``: numeric columns that hold at least one number."""
    return _averageable(outcomes, [str(name) for name in outcomes.columns if name not in NOT_METRICS])


def main_metric(outcomes: pd.DataFrame) -> str | None:
    """What accuracy is measured by where nothing else is asked for: ``acc``, or the first metric there is.

    One that can be judged comes before one that cannot: finite numbers, and a known direction. None where no metric is
    a number a question: perplexity is one of all texts together.
    """
    known = sorted(metrics_of(outcomes), key=lambda name: name != "acc")
    finite = [name for name in known if bool(np.isfinite(outcomes[name].to_numpy(dtype=float)).any())]
    judged = (name for name in finite if Metric.of(outcomes, name).higher_is_better is not None)
    return next(judged, next(iter(finite), None))


def check_metric(outcomes: pd.DataFrame, metric: str) -> str:
    """``metric``, one of lm-eval's or of ``MEASURES``. Raises InputError for one that the outcomes do not have."""
    if metric not in (known := metrics_of(outcomes) + _averageable(outcomes, MEASURES)):
        raise InputError(f"Unknown metric {metric!r}. {nearest(metric, known) if known else 'There is none here.'}")
    return metric


def _averageable(outcomes: pd.DataFrame, columns: Iterable[str]) -> list[str]:
    present = [c for c in columns if c in outcomes.columns and pd.api.types.is_numeric_dtype(outcomes[c])]
    return [c for c in present if bool(outcomes[c].notna().any())]


def pair_outcomes(outcomes: pd.DataFrame, metric: str, higher_is_better: bool | None = None) -> PairedOutcomes:
    """``metric``, one of lm-eval's or of ``MEASURES``, of every policy, paired with the baseline's.

    Which way is better is what the outcomes say of their tasks, unless it is given.

    Raises:
        InputError: missing columns, an unknown metric, no baseline, a question answered twice under one policy, or a
            policy that shares no question with the baseline.
    """
    if missing := [name for name in _NEEDED if name not in outcomes.columns]:
        raise InputError(f"These outcomes lack the columns {', '.join(missing)}. Pass the outcomes of a headcount run.")
    check_metric(outcomes, metric)
    firsts = outcomes.drop_duplicates("policy")
    firsts = firsts.sort_values("policy", key=lambda policy: policy != BASELINE, kind="stable")
    policies = [str(policy) for policy in firsts["policy"]]
    if BASELINE not in policies:
        raise InputError(
            f"There is no policy {BASELINE!r} among {', '.join(policies) or 'no policies at all'}. "
            "Changes are against a run without intervention: evaluate that too."
        )
    asked = outcomes.loc[outcomes["task"].isin(outcomes.loc[outcomes[metric].notna(), "task"].unique())]
    for policy, task, doc_id in asked.loc[
        asked.duplicated(subset=["policy", "task", "doc_id"]), ["policy", "task", "doc_id"]
    ].itertuples(index=False):
        raise InputError(
            f"Question {doc_id} of {task} was answered twice under policy {policy!r}. "
            "Keep one row a policy and question."
        )
    wide = asked.assign(asked=1.0).pivot(
        index=["task", "doc_id"], columns="policy", values=[metric, "share_off", "asked"]
    )
    values, share_off, was_asked = (
        wide[name].reindex(policies, axis="columns").to_numpy(dtype=float) for name in (metric, "share_off", "asked")
    )
    finite, both_asked = np.isfinite(values), np.nan_to_num(was_asked * was_asked[:, :1]).astype(bool)
    common = finite & finite[:, :1]
    if not common.any(axis=0).all():
        raise InputError(
            f"Policy {policies[int(common.any(axis=0).argmin())]!r} has no question with {metric!r} in common with the "
            "baseline. Evaluate both on the same tasks and documents."
        )
    if np.isnan(share_off[common]).any():
        raise InputError("share_off is NaN for some answered questions. Pass the outcomes of a headcount run.")
    kept = np.flatnonzero(finite.any(axis=1))
    return PairedOutcomes(
        metric=Metric.of(outcomes, metric, higher_is_better),
        policies=policies,
        curves=[str(curve) for curve in firsts["curve"]],
        shares_asked=[float(share) for share in firsts["share_asked"]],
        values=np.where(common, values, np.nan)[kept],
        share_off=np.where(common, share_off, np.nan)[kept],
        tasks=pd.factorize(wide.index.get_level_values("task")[kept])[0],
        num_not_finite=(both_asked & ~common).sum(axis=0),
        num_lost=(both_asked & ~finite & finite[:, :1]).sum(axis=0),
    )
