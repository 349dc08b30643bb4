"""Bootstrap over questions: drawn within their tasks, all policies together."""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from headcount.errors import InputError

_CELLS_A_CHUNK = 4_000_000  # draws held at once: tens of MB


def resampled_means(
    values: NDArray[np.floating], tasks: NDArray[np.integer], *, resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Bootstrap means of each column: questions are drawn with replacement within their task, all columns together.

    From a task of n questions n − 1 are drawn, each counted n / (n − 1) times: n draws would understate the variance
    by (n − 1) / n, which halves it where a task has two questions. Tasks of one question are taken together.

    Source: McCarthy and Snowden, The Bootstrap and Finite Population Sampling, 1985.

    Args:
        values: [question, column]; NaN is left out of its column's mean.
        tasks: [question], a number for its task.
        resamples: how many times to draw.
        rng: where the draws come from.

    Returns:
        [resample, column]; NaN where a resample drew no value of a column, so everywhere if there is one question.
    """
    known = ~np.isnan(values)
    stacked = np.hstack([np.where(known, values, 0.0), known.astype(float)])  # [question, 2 · column]
    sums = np.zeros((resamples, stacked.shape[1]))
    strata = _of_two_or_more(tasks)
    for stratum in np.unique(strata):
        members = stacked[strata == stratum]
        size = len(members)
        draws = size - 1
        if draws == 0:
            continue
        step = max(1, _CELLS_A_CHUNK // size)
        for start in range(0, resamples, step):
            rows = min(step, resamples - start)
            drawn = rng.integers(size, size=(rows, draws)) + size * np.arange(rows)[:, None]
            times = np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size)  # [resample, question]
            sums[start : start + rows] += times @ members * (size / draws)
    total, count = np.hsplit(sums, 2)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def interval(
    samples: NDArray[np.floating], confidence: float, tasks: NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two-sided percentile interval over the first axis of ``samples``, as by ``percentile``."""
    tail = (1 - confidence) / 2
    return percentile(samples, tail, tasks), percentile(samples, 1 - tail, tasks)


def percentile(samples: NDArray[np.floating], level: float, tasks: NDArray[np.integer]) -> NDArray[np.float64]:
    """A percentile of each column (``level`` 0…1), farther out the fewer the questions; NaN for one without samples.

    The levels are those that turn a normal's quantiles into Student's t's.

    Source: Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician 69 (2015), the
    "expanded" percentile interval.
    """
    found = np.full(samples.shape[1], np.nan)
    drawn = ~np.isnan(samples).all(axis=0)
    found[drawn] = np.nanquantile(samples[:, drawn], norm.cdf(t.ppf(level, degrees_of_freedom(tasks))), axis=0)
    return found


def confidence_above(samples: NDArray[np.floating], value: float, tasks: NDArray[np.integer]) -> NDArray[np.float64]:
    """The largest confidence with which each column's true mean is shown to lie above ``value``, as by ``percentile``.

    Never 0 or 1: a finite number of samples does not show that. NaN for a column without samples.
    """
    drawn = (~np.isnan(samples)).sum(axis=0)
    above = ((samples > value).sum(axis=0) + 1) / (drawn + 2)
    return np.where(drawn > 0, t.cdf(norm.ppf(above), degrees_of_freedom(tasks)), np.nan)


def degrees_of_freedom(tasks: NDArray[np.integer]) -> int:
    """Questions beyond the first of each task, at least 1."""
    strata = _of_two_or_more(tasks)
    return max(len(strata) - len(np.unique(strata)), 1)


def check_confidence(confidence: float) -> float:
    """``confidence``, or InputError when it is not between 0 and 1."""
    if not 0 < confidence < 1:
        raise InputError(f"confidence is a fraction between 0 and 1 (0.95, say), not {confidence}.")
    return confidence


def _of_two_or_more(tasks: NDArray[np.integer]) -> NDArray[np.integer]:
    """Task numbers in which those with one question have become one, joined to another task where that is one still."""
    alone = np.bincount(tasks)[tasks] == 1
    if not alone.any():
        return tasks
    joined = tasks.max() + 1 if alone.sum() > 1 or alone.all() else tasks[~alone][0]
    return np.where(alone, joined, tasks)
