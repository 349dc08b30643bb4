"""Accuracy of each policy, and its change from the baseline on the same questions."""

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from headcount.analysis.bootstrap import check_confidence, confidence_above, interval, percentile, resampled_means
from headcount.analysis.change import PairedCounts
from headcount.analysis.outcomes import PairedOutcomes, pair_outcomes
from headcount.analysis.statistics import Statistics
from headcount.errors import InputError


def accuracy_table(
    outcomes: pd.DataFrame,
    *,
    metric: str = "acc",
    higher_is_better: bool | None = None,
    margin: float = Statistics.margin,
    confidence: float = Statistics.confidence,
    resamples: int = Statistics.resamples,
    seed: int = Statistics.seed,
) -> pd.DataFrame:
    """Accuracy of each policy, its paired change from the baseline, and whether the fall is within a margin.

    A question is a (task, doc_id). Only questions with ``metric`` that the policy shares with the baseline count, each
    once, whatever its task, so tasks weigh by their number of questions (lm-eval's ``weight_by_size``, as for MMLU).
    All statements are about questions like these, drawn within the same tasks.

    Of a metric that is better when lower the *fall* is a rise: the change stays in the metric's own unit and sign, the
    margin bounds its rise, and ``change_bound`` lies above it. What way is better is what the metric's tasks say; where
    they do not, or not the same, changes are given and not judged.

    A question whose value is not finite, untouched or under the policy, is left out and counted. Where it is finite
    untouched, the fall is not said to be within the margin.

    For a metric that is 0 or 1 on every question the bounds are those of Tango's score test for paired proportions,
    with variances within tasks (``PairedCounts``), which keep their confidence with few questions and rare changes;
    bootstrap percentiles do not. Other metrics have bootstrap intervals, drawn within tasks and widened for few
    questions. The test against no change is McNemar's, exact and two-sided.

    The fall is within ``margin`` as a statement of non-inferiority: ``shown`` when the change lies above −margin with
    ``confidence`` (one-sided), ``refuted`` when it lies below, ``undecided`` when these questions cannot say. Each
    policy is judged by itself.

    Args:
        outcomes: one row a policy and question.
        metric: the column to average: one of lm-eval's, ``gold_loglikelihood`` or ``kl_from_baseline``.
        higher_is_better: which way it is better, where its tasks are not to be asked.
        margin: the fall that is tolerated, in the metric's unit: 0.01 for 1 point of accuracy.
        confidence: of the two-sided interval, and of the one-sided verdict.
        resamples: bootstrap draws.
        seed: of the draws.

    Returns:
        One row a policy, the baseline first, then in order of first appearance: policy, curve, share_asked,
        share_realised, num_questions, num_not_finite (questions left out for that), accuracy (the mean of ``metric``),
        change, change_low, change_high (two-sided), change_bound (one-sided: the change is better than it),
        confidence_within (the largest confidence with which the fall is shown to be within the margin), within_margin
        (shown, refuted or undecided), p_mcnemar, higher_is_better, is_share (whether every question is worth between 0
        and 1). Shares, accuracies and changes are fractions of 1, or in the metric's own unit. From the interval to p all
        is missing for the baseline, p also for other than 0/1 metrics, the bound and the verdict for metrics that are not
        judged.

    Raises:
        InputError: no baseline, an unknown metric, a policy without questions in common with the baseline, a margin
            below 0, or a confidence outside 0…1.
    """
    check_confidence(confidence)
    if not margin >= 0:
        raise InputError(f"margin is a fall of {metric}, 0 or more (0.01 for 1 point of accuracy); got {margin}.")
    paired = pair_outcomes(outcomes, metric, higher_is_better)
    change = paired.change  # [question, policy]
    table = pd.DataFrame(
        {
            "policy": paired.policies,
            "curve": paired.curves,
            "share_asked": paired.shares_asked,
            "share_realised": np.nanmean(paired.share_off, axis=0),
            "num_questions": (~np.isnan(change)).sum(axis=0),
            "num_not_finite": paired.num_not_finite,
            "accuracy": np.nanmean(paired.values, axis=0),
            "change": np.nanmean(change, axis=0),
        }
    )
    if paired.binary:
        bounds = _of_counts(paired, margin, confidence)
    else:
        rng = np.random.default_rng(seed)
        bounds = _of_bootstrap(paired, margin, confidence, resamples, rng)
    verdicts = _verdicts(bounds["confidence_within"].tolist(), paired.num_lost.tolist(), confidence)
    bounds.insert(4, "within_margin", verdicts)
    if paired.metric.sign < 0:  # back from gains to the metric's own sign
        bounds[["change_low", "change_high"]] = -bounds[["change_high", "change_low"]].to_numpy()
        bounds["change_bound"] *= -1
    bounds.loc[0] = None  # the baseline against itself
    way = paired.metric.higher_is_better
    if way is None:
        bounds[["change_bound", "confidence_within"]] = np.nan
        bounds["within_margin"] = None
    return pd.concat([table, bounds], axis="columns").assign(
        higher_is_better=pd.Series([way] * len(table), dtype=object), is_share=paired.metric.is_share
    )


def _of_counts(paired: PairedOutcomes, margin: float, confidence: float) -> pd.DataFrame:
    two_sided = (1 + confidence) / 2
    rows = []
    for column in paired.gain.T:
        counts = PairedCounts.of(column, paired.tasks)
        rows.append({
            "change_low": counts.lower(two_sided),
            "change_high": counts.upper(two_sided),
            "change_bound": counts.lower(confidence),
            "confidence_within": counts.confidence_above(-margin),
            "p_mcnemar": mcnemar(counts.gained, counts.lost),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _of_bootstrap(
    paired: PairedOutcomes, margin: float, confidence: float, resamples: int, rng: np.random.Generator
) -> pd.DataFrame:
    samples = resampled_means(paired.gain, paired.tasks, resamples=resamples, rng=rng)
    low, high = interval(samples, confidence, paired.tasks)
    return pd.DataFrame({
        "change_low": low,
        "change_high": high,
        "change_bound": percentile(samples, 1 - confidence, paired.tasks),
        "confidence_within": confidence_above(samples, -margin, paired.tasks),
        "p_mcnemar": np.nan,
    })  # fmt: skip


def _verdicts(confidence_within: list[float], num_lost: list[int], confidence: float) -> list[str]:
    return [
        "refuted" if reached <= 1 - confidence else "shown" if reached >= confidence and not lost else "undecided"
        for reached, lost in zip(confidence_within, num_lost, strict=True)
    ]


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p of McNemar's test: ``gained`` questions turned right, ``lost`` turned wrong; 1 if neither.

    >>> mcnemar(0, 3)  # 2 · (1/2)³
    0.25
    """
    return 1.0 if gained + lost == 0 else float(binomtest(int(gained), int(gained + lost), 0.5).pvalue)
