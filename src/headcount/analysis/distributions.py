"""How scores are distributed: over all heads and inputs, layer by layer, and from one model to another."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

from headcount.analysis.inactivity import score_names
from headcount.errors import InputError
from headcount.summaries import Summary

_MOST_VALUES = 100_000  # of a distribution that is compared with another


def cumulative(scores: xr.Dataset | Summary, *, levels: int = 201) -> pd.DataFrame:
    """The cumulative distribution of each score over all examples, layers and heads, as quantiles at equal steps.

    Returns:
        One row a score and level: score, share (0…1), value: that share of the scores is at most ``value``. The numbers
        are ``thresholds``' at these shares, without regard to direction. Scores that were nowhere measured are left out.
    """
    shares = np.linspace(0, 1, levels)
    frames = []
    for name in score_names(scores):
        quantiles = _quantiles(scores, name, shares)
        if not np.isnan(quantiles).any():
            frames.append(pd.DataFrame({"score": name, "share": shares, "value": quantiles}))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["score", "share", "value"])


def distances(scores: Mapping[str, xr.Dataset | Summary]) -> pd.DataFrame:
    """Wasserstein distance (of order 1) between the distributions of each score in every two models, or data sets.

    How far, on average, a score has to be moved to turn the one distribution into the other, in the score's unit. Of more
    than 100,000 scores as many evenly spaced quantiles are compared, which changes a distance by less than the score's
    range over 100,000.

    Args:
        scores: name → dims (example, layer, head), or a summary; numbers of layers, heads and inputs may differ.

    Returns:
        One row a score and pair: score, one, other, distance. Scores that one of a pair lacks are left out.

    Raises:
        InputError: fewer than two.
    """
    if len(scores) < 2:
        raise InputError(f"Distances are between at least two; got {', '.join(scores) or 'none'}.")
    rows = []
    for score in dict.fromkeys(name for of_one in scores.values() for name in score_names(of_one)):
        known = {name: _thinned(of_one, score) for name, of_one in scores.items() if score in of_one}
        for one, other in combinations([name for name, values in known.items() if len(values)], 2):
            distance = float(wasserstein_distance(known[one], known[other]))
            rows.append({"score": score, "one": one, "other": other, "distance": distance})
    return pd.DataFrame(rows, columns=["score", "one", "other", "distance"])


def layer_profile(scores: xr.Dataset | Summary, *, shares: Sequence[float] = (0.1, 0.5, 0.9)) -> pd.DataFrame:
    """Each score layer by layer, over examples and heads; of a summary, one that counts by layer.

    Returns:
        One row a score and layer: score, layer (index in the model), mean, and a quantile q10, q50, … for each of
        ``shares``; NaN where nothing was measured.
    """
    names = [f"q{100 * share:g}" for share in shares]
    rows = []
    for score, of_score in scores.scores.items() if isinstance(scores, Summary) else ():
        quantiles, (count, *_) = of_score.part_quantiles(shares), of_score.of_parts
        total = np.nansum(of_score.moments.count * of_score.moments.mean, axis=1)
        means = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
        for number, layer in enumerate(scores.layers):
            at = dict(zip(names, quantiles[:, number], strict=True))
            rows.append({"score": score, "layer": layer, "mean": means[number], **at})
    table = scores if isinstance(scores, xr.Dataset) else xr.Dataset()
    for score in map(str, table.data_vars):
        for number, layer in enumerate(table["layer"].to_numpy()):
            values = _sorted(table[score].isel(layer=number))
            quantiles = np.quantile(values, shares) if len(values) else [np.nan] * len(names)
            mean = float(values.mean(dtype=np.float64)) if len(values) else np.nan
            rows.append({"score": score, "layer": int(layer), "mean": mean, **dict(zip(names, quantiles, strict=True))})
    return pd.DataFrame(rows)


def extremes(scores: Summary, most: int = 20) -> pd.DataFrame:
    """The units with the largest and the smallest mean of each score.

    Returns:
        One row a score and unit: score, end (``largest``, the largest first, then ``smallest``), layer, unit, and its mean,
        deviation (the square root of its variance), smallest and largest value over inputs.
    """
    frames = []
    for score, of_score in scores.scores.items():
        moments = of_score.moments
        order = np.argsort(moments.mean, axis=None, kind="stable")[: int((moments.count > 0).sum())]
        for end, places in (("largest", order[::-1][:most]), ("smallest", order[:most])):
            layer, unit = np.unravel_index(places, moments.mean.shape)
            deviation = np.sqrt(moments.deviations / np.maximum(moments.count, 1))
            columns = {
                "mean": moments.mean,
                "deviation": deviation,
                "smallest": moments.smallest,
                "largest": moments.largest,
            }
            of_units = {name: values[layer, unit] for name, values in columns.items()}
            where = {"layer": np.array(scores.layers)[layer], "unit": unit}
            frames.append(pd.DataFrame({"score": score, "end": end, **where, **of_units}))
    return pd.concat(frames, ignore_index=True)


def _sorted(values: xr.DataArray) -> NDArray[np.floating]:
    flat = values.to_numpy()
    return np.sort(flat[np.isfinite(flat)], axis=None)


def _quantiles(scores: xr.Dataset | Summary, name: str, shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """``thresholds``' quantiles of one score; NaN when it was nowhere measured."""
    if isinstance(scores, Summary):
        return scores.scores[name].quantiles(shares)
    values = _sorted(scores[name])
    if not len(values):
        return np.full(shares.shape, np.nan)
    return np.quantile(values, shares, method="interpolated_inverted_cdf").astype(np.float64)


def _thinned(scores: xr.Dataset | Summary, name: str) -> NDArray[np.floating]:
    """Sorted values, or evenly spaced quantiles of them if they are many or summarised."""
    middles = (np.arange(_MOST_VALUES) + 0.5) / _MOST_VALUES
    if isinstance(scores, Summary):
        quantiles = scores.scores[name].quantiles(middles)
        return quantiles[~np.isnan(quantiles)]
    values = _sorted(scores[name])
    return values if len(values) <= _MOST_VALUES else values[(middles * len(values)).astype(int)]
