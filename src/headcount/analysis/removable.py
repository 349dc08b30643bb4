"""How large a share of the heads can be off before accuracy falls by more than a margin."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from headcount.analysis.accuracy import accuracy_table
from headcount.analysis.bootstrap import check_confidence, interval, resampled_means
from headcount.analysis.outcomes import pair_outcomes
from headcount.analysis.statistics import Statistics
from headcount.errors import InputError

#: Of ``removable_table``.
COLUMNS = ["curve", "removable_share", "is_lower_bound", "low", "high", "share_shown", "largest_share_measured"]


def last_crossing(shares: ArrayLike, accuracies: ArrayLike, floor: float) -> tuple[float, bool]:
    """Where a curve falls below ``floor`` for good: the share, and whether that is only a lower bound.

    The points, sorted by share, are joined by straight lines. The answer is the last share at which the curve crosses
    ``floor`` downwards and does not come back. A curve that ends at or above ``floor`` has no such place: then it is
    the largest share, as a lower bound. A curve that is below throughout gives 0.

    Source: arXiv 2504.03889, Table 2. Differs: the authors print 0 where we give a lower bound.

    Raises:
        InputError: no points, not as many shares as accuracies, or NaN among them.

    >>> last_crossing([0.0, 0.5, 1.0], [0.50, 0.50, 0.25], floor=0.375)
    (0.75, False)
    """
    x, y = np.asarray(shares, dtype=float), np.asarray(accuracies, dtype=float)
    if x.ndim != 1 or x.shape != y.shape or x.size == 0 or np.isnan([x, y]).any():
        raise InputError(
            f"Expected as many shares as accuracies, at least one, none NaN; got {shares} and {accuracies}."
        )
    share, is_lower_bound = _last_crossings(x[None], y[None], np.array([floor], dtype=float))
    return float(share[0]), bool(is_lower_bound[0])


def removable_table(
    outcomes: pd.DataFrame,
    *,
    metric: str = "acc",
    higher_is_better: bool | None = None,
    margin: float = Statistics.margin,
    relative: bool = False,
    confidence: float = Statistics.confidence,
    resamples: int = Statistics.resamples,
    seed: int = Statistics.seed,
) -> pd.DataFrame:
    """The share of heads that each curve lets one switch off within ``margin`` of the baseline's accuracy.

    A curve starts at share 0 with no change, and has one point for each of its policies: the realised share
    and the change of accuracy on the questions that the policy and the baseline both have. The interval is a
    percentile bootstrap over questions, within tasks: every point of every curve and the baseline are resampled
    together. It accounts for which questions were asked, not for the choice of the best curve among several. Where no draw
    falls below the margin it begins at ``share_shown``.

    ``share_shown`` is the careful answer: the largest measured share up to which accuracy is *shown* to stay within the
    margin, as in ``accuracy_table``, at this share and at all smaller measured ones. Taking the shares in order and
    stopping at the first that is not shown keeps the confidence without a correction for their number (a fixed-sequence
    test).

    Of a metric that is better when lower a fall is a rise: the share is where the curve last rises above the baseline
    plus the margin.

    Arguments are those of ``accuracy_table``, and:

    Args:
        margin: the fall that is tolerated: of accuracy as a fraction of 1 (0.01 for 1 point), or with ``relative`` as a
            fraction of the baseline's accuracy (0.01 for 1 percent of it).
        relative: whether ``margin`` is relative.
        confidence: of the interval, and of ``share_shown``.

    Returns:
        One row a curve, in order of first appearance: curve; removable_share; is_lower_bound (the curve does not end
        below the margin); low and high (``high`` equal to ``largest_share_measured`` means at least that); share_shown
        (0 where not even the smallest is shown); largest_share_measured. Shares are fractions of all heads, 0..1.

    Raises:
        InputError: no baseline, an unknown metric or one of which is not known which way it is better, no common
            questions, a margin below 0, or a confidence outside 0…1.
    """
    check_confidence(confidence)
    if not margin >= 0:
        raise InputError(
            f"margin is a fall of accuracy as a fraction of 1 (0.01 for 1 point), 0 or more; got {margin}."
        )
    paired = pair_outcomes(outcomes, metric, higher_is_better)
    if paired.metric.higher_is_better is None:
        raise InputError(paired.metric.doubt)
    rng = np.random.default_rng(seed)
    values = np.hstack([paired.share_off, paired.gain, paired.values[:, :1]])  # [question, 2 · policy + 1]
    samples = resampled_means(values, paired.tasks, resamples=resamples, rng=rng)
    measured = np.nanmean(values, axis=0, keepdims=True)
    floors = [
        -margin * np.abs(means[:, -1]) if relative else np.full(len(means), -margin) for means in (measured, samples)
    ]
    judged = accuracy_table(
        outcomes, metric=metric, higher_is_better=higher_is_better, margin=abs(float(floors[0][0])),
        confidence=confidence, resamples=resamples, seed=seed,
    )  # fmt: skip
    rows = []
    for curve in dict.fromkeys(filter(None, paired.curves)):
        points = [i for i, other in enumerate(paired.curves) if other == curve]
        x, y = _curves(measured[:, :-1], points)
        removable, is_lower_bound = _last_crossings(x, y, floors[0])
        largest = float(x.max())
        crossings, never = _last_crossings(*_curves(samples[:, :-1], points), floors[1])
        bounds = interval(np.where(never, largest, np.minimum(crossings, largest))[:, None], confidence, paired.tasks)
        low, high = (float(bound[0]) for bound in bounds)
        if np.isnan(samples[0, 0]):  # one question: it could be anywhere
            low, high = 0.0, largest
        shown = _share_shown(judged.iloc[points])
        if low >= largest:  # no draw falls below: where hardly a question changed, resampling takes luck for certainty
            low = shown
        rows.append((curve, float(removable[0]), bool(is_lower_bound[0]), low, high, shown, largest))
    return pd.DataFrame(rows, columns=COLUMNS)


def _share_shown(judged: pd.DataFrame) -> float:
    """The largest realised share before the first that is not shown to be within the margin; 0 without one."""
    ordered = judged.sort_values("share_realised", kind="stable")
    shown = (ordered["within_margin"] == "shown").cummin().to_numpy(dtype=bool)
    return float(np.max(ordered["share_realised"].to_numpy()[shown], initial=0.0))


def _curves(means: NDArray[np.float64], points: list[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares and gains, [curve, point], from ``means`` [curve, 2 · policy]; (0, 0) stands first."""
    share, gain = np.hsplit(means, 2)
    origin = np.zeros((len(means), 1))
    return np.hstack([origin, share[:, points]]), np.hstack([origin, gain[:, points]])


def _last_crossings(
    x: NDArray[np.float64], y: NDArray[np.float64], floor: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """``last_crossing`` of many curves at once: x and y are [curve, point], floor [curve]."""
    order = np.argsort(x, axis=1, kind="stable")
    x, y = np.take_along_axis(x, order, axis=1), np.take_along_axis(y, order, axis=1)
    below = y < floor[:, None]
    # Index of the last point that is not below; -1 when all are.
    last_above = np.where(below.all(axis=1), -1, below.shape[1] - 1 - np.argmax(~below[:, ::-1], axis=1))
    is_lower_bound = last_above == below.shape[1] - 1
    rows = np.arange(len(x))
    left = np.clip(last_above, 0, None)
    right = np.minimum(left + 1, below.shape[1] - 1)
    fall = y[rows, left] - y[rows, right]
    part = np.divide(y[rows, left] - floor, fall, out=np.zeros(len(x)), where=(last_above >= 0) & ~is_lower_bound)
    crossing = x[rows, left] + part * (x[rows, right] - x[rows, left])
    return np.where(last_above < 0, 0.0, crossing), is_lower_bound
