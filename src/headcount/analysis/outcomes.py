"""Per-question outcomes: what both tables read from them, and how their questions are resampled."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headcount.errors import InputError, nearest

BASELINE = "baseline"

# Columns of outcomes that are never a metric.
_NOT_METRICS = frozenset({
    "policy", "score", "share_asked", "threshold", "task", "doc_id", "doc_hash", "loglikelihoods", "share_zeroed",
    "num_inputs", "num_tokens",
})  # fmt: skip
_NEEDED = ("policy", "score", "share_asked", "task", "doc_id", "share_zeroed")
_CELLS_A_CHUNK = 4_000_000  # draws held at once while resampling: tens of MB


@dataclass(frozen=True, kw_only=True)
class PairedOutcomes:
    """One metric of every policy beside the baseline's, question by question (task, doc_id).

    ``values`` and ``share_zeroed`` are NaN where the policy or the baseline has no such value: only pairs count.
    """

    policies: list[str]  # the baseline first, then in order of first appearance
    scores: list[str]  # of each policy; "" for those that use none
    shares_asked: list[float]  # of each policy
    values: NDArray[np.float64]  # [question, policy]
    share_zeroed: NDArray[np.float64]  # [question, policy]
    tasks: NDArray[np.intp]  # [question], a number for each task: the strata of the bootstrap

    @property
    def change(self) -> NDArray[np.float64]:
        """``values`` minus the baseline's, [question, policy]."""
        return self.values - self.values[:, :1]


def metrics_of(outcomes: pd.DataFrame) -> list[str]:
    """The metric columns of ``outcomes``: numeric, and holding at least one number."""
    columns = [str(name) for name in outcomes.columns if name not in _NOT_METRICS]
    return [c for c in columns if pd.api.types.is_numeric_dtype(outcomes[c]) and bool(outcomes[c].notna().any())]


def pair_outcomes(outcomes: pd.DataFrame, metric: str) -> PairedOutcomes:
    """``metric`` of every policy, paired with the baseline's.

    Raises:
        InputError: missing columns, an unknown metric, no baseline, a question answered twice under one policy, or a
            policy that shares no question with the baseline.
    """
    if missing := [name for name in _NEEDED if name not in outcomes.columns]:
        raise InputError(f"These outcomes lack the columns {', '.join(missing)}. Pass the outcomes of a headcount run.")
    if metric not in (known := metrics_of(outcomes)):
        raise InputError(f"Unknown metric {metric!r}. {nearest(metric, known) if known else 'There is none here.'}")
    firsts = outcomes.drop_duplicates("policy")
    firsts = firsts.sort_values("policy", key=lambda policy: policy != BASELINE, kind="stable")
    policies = [str(policy) for policy in firsts["policy"]]
    if BASELINE not in policies:
        raise InputError(
            f"There is no policy {BASELINE!r} among {', '.join(policies) or 'no policies at all'}. "
            "Changes are against a run without intervention: evaluate that too."
        )
    answered = outcomes.dropna(subset=[metric])
    for policy, task, doc_id in answered.loc[
        answered.duplicated(subset=["policy", "task", "doc_id"]), ["policy", "task", "doc_id"]
    ].itertuples(index=False):
        raise InputError(
            f"Question {doc_id} of {task} was answered twice under policy {policy!r}. "
            "Keep one row a policy and question."
        )
    wide = answered.pivot(index=["task", "doc_id"], columns="policy", values=[metric, "share_zeroed"])
    values = wide[metric].reindex(policies, axis="columns").to_numpy(dtype=float)
    share_zeroed = wide["share_zeroed"].reindex(policies, axis="columns").to_numpy(dtype=float)
    common = ~np.isnan(values) & ~np.isnan(values[:, :1])
    if not common.any(axis=0).all():
        raise InputError(
            f"Policy {policies[int(common.any(axis=0).argmin())]!r} has no question with {metric!r} in common with the "
            "baseline. Evaluate both on the same tasks and documents."
        )
    if np.isnan(share_zeroed[common]).any():
        raise InputError("share_zeroed is NaN for some answered questions. Pass the outcomes of a headcount run.")
    return PairedOutcomes(
        policies=policies,
        scores=[str(score) for score in firsts["score"]],
        shares_asked=[float(share) for share in firsts["share_asked"]],
        values=np.where(common, values, np.nan),
        share_zeroed=np.where(common, share_zeroed, np.nan),
        tasks=pd.factorize(wide.index.get_level_values("task"))[0],
    )


def resampled_means(
    values: NDArray[np.floating], strata: NDArray[np.integer], *, resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Bootstrap means of each column: questions are drawn with replacement within their stratum, all columns together.

    Args:
        values: [question, column]; NaN is left out of its column's mean.
        strata: [question], the stratum of each question.
        resamples: how many times to draw.
        rng: where the draws come from.

    Returns:
        [resample, column]; NaN where a resample drew no value of a column.
    """
    known = ~np.isnan(values)
    stacked = np.hstack([np.where(known, values, 0.0), known.astype(float)])  # [question, 2 · column]
    sums = np.zeros((resamples, stacked.shape[1]))
    for stratum in np.unique(strata):
        members = stacked[strata == stratum]
        size = len(members)
        step = max(1, _CELLS_A_CHUNK // size)
        for start in range(0, resamples, step):
            rows = min(step, resamples - start)
            drawn = rng.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
            times = np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size)  # [resample, question]
            sums[start : start + rows] += times @ members
    total, count = np.hsplit(sums, 2)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def interval(samples: NDArray[np.floating], confidence: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentile interval over the first axis. Raises InputError when ``confidence`` is not between 0 and 1."""
    if not 0 < confidence < 1:
        raise InputError(f"confidence is a fraction between 0 and 1 (0.95, say), not {confidence}.")
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(samples, [tail, 1 - tail], axis=0)
    return low, high
