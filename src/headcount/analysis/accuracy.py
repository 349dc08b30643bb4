"""Accuracy of each policy, and its change from the baseline on the same questions."""

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from headcount.analysis.outcomes import interval, pair_outcomes, resampled_means


def accuracy_table(
    outcomes: pd.DataFrame,
    *,
    metric: str = "acc",
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Accuracy of each policy and its paired change from the baseline.

    A question is a (task, doc_id). Only questions with ``metric`` that the policy shares with the baseline count, each
    once, whatever its task. The interval of the change is a percentile bootstrap over questions, drawn within each
    task; the test is McNemar's, exact and two-sided, and needs a metric that is 0 or 1.

    Args:
        outcomes: one row a policy and question.
        metric: the column to average.
        confidence: coverage of the interval.
        resamples: bootstrap draws.
        seed: of the draws.

    Returns:
        One row a policy, the baseline first, then in order of first appearance: policy, score, share_asked,
        share_realised, num_questions, accuracy, change, change_low, change_high, p_mcnemar. Shares, accuracies and
        changes are fractions of 1. The interval and p are NaN for the baseline, p also for other than 0/1 metrics.

    Raises:
        InputError: no baseline, an unknown metric, or a policy without questions in common with the baseline.
    """
    paired = pair_outcomes(outcomes, metric)
    change = paired.change  # [question, policy]
    rng = np.random.default_rng(seed)
    low, high = interval(resampled_means(change, paired.tasks, resamples=resamples, rng=rng), confidence)
    binary = np.isnan(paired.values) | (paired.values == 0) | (paired.values == 1)
    gained, lost = (change > 0).sum(axis=0), (change < 0).sum(axis=0)
    table = pd.DataFrame(
        {
            "policy": paired.policies,
            "score": paired.scores,
            "share_asked": paired.shares_asked,
            "share_realised": np.nanmean(paired.share_zeroed, axis=0),
            "num_questions": (~np.isnan(change)).sum(axis=0),
            "accuracy": np.nanmean(paired.values, axis=0),
            "change": np.nanmean(change, axis=0),
            "change_low": low,
            "change_high": high,
            "p_mcnemar": [mcnemar(*pair) for pair in zip(gained, lost, strict=True)] if binary.all() else np.nan,
        }
    )
    table.loc[0, ["change_low", "change_high", "p_mcnemar"]] = np.nan  # the baseline against itself
    return table


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p of McNemar's test: ``gained`` questions turned right, ``lost`` turned wrong; 1 if neither.

    >>> mcnemar(0, 3)  # 2 · (1/2)³
    0.25
    """
    return 1.0 if gained + lost == 0 else float(binomtest(int(gained), int(gained + lost), 0.5).pvalue)
