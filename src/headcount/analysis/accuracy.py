"""Accuracy of each policy, and its change from the baseline on the same questions."""

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from headcount.analysis.bootstrap import check_confidence, confidence_above, interval, percentile, resampled_means
from headcount.analysis.change import PairedCounts
from headcount.analysis.outcomes import PairedOutcomes, pair_outcomes
from headcount.errors import InputError


def accuracy_table(
    outcomes: pd.DataFrame,
    *,
    metric: str = "acc",
    margin: float = 0.01,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Accuracy of each policy, its paired change from the baseline, and whether the fall is within a margin.

    A question is a (task, doc_id). Only questions with ``metric`` that the policy shares with the baseline count, each
    once, whatever its task, so tasks weigh by their number of questions (lm-eval's ``weight_by_size``, as for MMLU).
    All statements are about questions like these, drawn within the same tasks.

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
        margin: the fall that is tolerated, in the metric's unit: 0.01 for 1 point of accuracy.
        confidence: of the two-sided interval, and of the one-sided verdict.
        resamples: bootstrap draws.
        seed: of the draws.

    Returns:
        One row a policy, the baseline first, then in order of first appearance: policy, score, share_asked,
        share_realised, num_questions, accuracy, change, change_low, change_high (two-sided), change_bound (one-sided:
        the change lies above it), confidence_within (the largest confidence with which the fall is shown to be within
        the margin), within_margin (shown, refuted or undecided), p_mcnemar. Shares, accuracies and changes are
        fractions of 1. All from the interval on is missing for the baseline, p also for other than 0/1 metrics.

    Raises:
        InputError: no baseline, an unknown metric, a policy without questions in common with the baseline, a margin
            below 0, or a confidence outside 0…1.
    """
    check_confidence(confidence)
    if not margin >= 0:
        raise InputError(f"margin is a fall of {metric}, 0 or more (0.01 for 1 point of accuracy); got {margin}.")
    paired = pair_outcomes(outcomes, metric)
    change = paired.change  # [question, policy]
    table = pd.DataFrame(
        {
            "policy": paired.policies,
            "score": paired.scores,
            "share_asked": paired.shares_asked,
            "share_realised": np.nanmean(paired.share_zeroed, axis=0),
            "num_questions": (~np.isnan(change)).sum(axis=0),
            "accuracy": np.nanmean(paired.values, axis=0),
            "change": np.nanmean(change, axis=0),
        }
    )
    if paired.binary:
        bounds = _of_counts(paired, margin, confidence)
    else:
        rng = np.random.default_rng(seed)
        bounds = _of_bootstrap(paired, margin, confidence, resamples, rng)
    bounds.insert(4, "within_margin", _verdicts(bounds["confidence_within"].tolist(), confidence))
    bounds.loc[0] = None  # the baseline against itself
    return pd.concat([table, bounds], axis="columns")


def _of_counts(paired: PairedOutcomes, margin: float, confidence: float) -> pd.DataFrame:
    two_sided = (1 + confidence) / 2
    rows = []
    for column in paired.change.T:
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
    samples = resampled_means(paired.change, paired.tasks, resamples=resamples, rng=rng)
    low, high = interval(samples, confidence, paired.tasks)
    return pd.DataFrame({
        "change_low": low,
        "change_high": high,
        "change_bound": percentile(samples, 1 - confidence, paired.tasks),
        "confidence_within": confidence_above(samples, -margin, paired.tasks),
        "p_mcnemar": np.nan,
    })  # fmt: skip


def _verdicts(confidence_within: list[float], confidence: float) -> list[str]:
    return [
        "shown" if reached >= confidence else "refuted" if reached <= 1 - confidence else "undecided"
        for reached in confidence_within
    ]


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p of McNemar's test: ``gained`` questions turned right, ``lost`` turned wrong; 1 if neither.

    >>> mcnemar(0, 3)  # 2 · (1/2)³
    0.25
    """
    return 1.0 if gained + lost == 0 else float(binomtest(int(gained), int(gained + lost), 0.5).pvalue)
