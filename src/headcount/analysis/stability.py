"""Do thresholds, and the heads beyond them, carry over from one benchmark to another?"""

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import rankdata

from headcount.analysis.inactivity import count_beyond
from headcount.errors import InputError
from headcount.scores import inactive_when
from headcount.summaries import Summary


def threshold_stability(thresholds: Mapping[str, xr.Dataset]) -> pd.DataFrame:
    """Each threshold on each benchmark, and how far they spread.

    Args:
        thresholds: benchmark → as from ``thresholds``, dim (share,).

    Returns:
        One row a score and share that all have: score, share, one column a benchmark, spread (largest minus smallest, over
        their mean's size).

    Raises:
        InputError: fewer than two benchmarks.
    """
    names, scores, shares = _compared(thresholds)
    rows = []
    for score in scores:
        for share in shares:
            cuts = [float(thresholds[name][score].sel(share=share)) for name in names]
            mean = abs(float(np.mean(cuts)))
            spread = (max(cuts) - min(cuts)) / mean if mean > 0 else float("nan")
            rows.append({"score": score, "share": share, **dict(zip(names, cuts, strict=True)), "spread": spread})
    return pd.DataFrame(rows)


def threshold_transfer(
    scores: Mapping[str, xr.Dataset | Summary], thresholds: Mapping[str, xr.Dataset]
) -> pd.DataFrame:
    """What share of heads a threshold found on one benchmark calls inactive on another, no head being off.

    Args:
        scores: benchmark → dims (example, layer, head), or a summary.
        thresholds: benchmark → dim (share,).

    Returns:
        One row a score, share and pair: score, share, found_on, used_on, share_inactive.

    Raises:
        InputError: fewer than two benchmarks.
    """
    names, chosen, shares = _compared(thresholds)
    rows = []
    for used_on in names:
        for score in (name for name in chosen if name in scores[used_on]):
            cuts = np.array([[thresholds[name][score].sel(share=share).item() for share in shares] for name in names])
            for (of, at), share in np.ndenumerate(_shares_beyond(scores[used_on], score, cuts)):
                rows.append({
                    "score": score, "share": shares[at], "found_on": names[of], "used_on": used_on, "share_inactive": share,
                })  # fmt: skip
    return pd.DataFrame(rows, columns=["score", "share", "found_on", "used_on", "share_inactive"])


def _shares_beyond(scores: xr.Dataset | Summary, score: str, cuts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Which share of all heads on all inputs lies beyond each threshold; NaN where nothing was measured."""
    if isinstance(scores, Summary):
        below = scores.scores[score].share_below(cuts).reshape(cuts.shape)
        return below if inactive_when(score, scores) == "low" else 1 - below
    inactive, measured = count_beyond(scores, score, cuts.ravel())
    total = measured.sum() or np.nan
    return inactive.sum(axis=(1, 2)).reshape(cuts.shape) / total


def head_stability(frequencies: Mapping[str, xr.Dataset]) -> pd.DataFrame:
    """Whether the same heads are inactive on different benchmarks.

    Args:
        frequencies: benchmark → from ``head_frequency``, of one model.

    Returns:
        One row a score, share and pair of benchmarks: score, share, one, other, correlation (Spearman's, of how often each
        head is inactive; NaN where all are so equally often), iou (overlap of the heads most often inactive, as many as
        the share says; heads equally often inactive are taken in the model's order).

    Raises:
        InputError: fewer than two benchmarks.
    """
    names, scores, shares = _compared(frequencies)
    rows = []
    for score in scores:
        for share in shares:
            flat = {name: frequencies[name][score].sel(share=share).to_numpy().ravel() for name in names}
            for one, other in combinations(names, 2):
                known = ~np.isnan(flat[one]) & ~np.isnan(flat[other])
                a, b = flat[one][known], flat[other][known]
                rows.append({
                    "score": score, "share": share, "one": one, "other": other,
                    "correlation": _spearman(a, b), "iou": _overlap(a, b, round(share * len(a))),
                })  # fmt: skip
    return pd.DataFrame(rows)


def _compared(of: Mapping[str, xr.Dataset]) -> tuple[list[str], list[str], list[float]]:
    """Benchmarks, and the scores and shares that all of them have."""
    if len(of) < 2:
        raise InputError(f"Comparing takes at least two benchmarks; got {', '.join(of) or 'none'}.")
    first, *others = of.values()
    scores = [str(name) for name in first.data_vars if all(name in other for other in others)]
    shares = [float(share) for share in first["share"].to_numpy() if all(share in other["share"] for other in others)]
    return list(of), scores, shares


def _spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def _overlap(a: NDArray[np.float64], b: NDArray[np.float64], count: int) -> float:
    if count == 0:
        return float("nan")
    of_a, of_b = (set(np.argsort(-values, kind="stable")[:count].tolist()) for values in (a, b))
    return len(of_a & of_b) / len(of_a | of_b)
