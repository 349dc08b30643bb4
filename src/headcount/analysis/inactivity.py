"""Which heads are inactive, on how many inputs, and how many whole key-value groups with them.

Scores are datasets as from ``measure_heads``, dims (example, layer, head), or their summary where those were too many to
keep; thresholds as from ``thresholds``, dim (share,). Datasets may be large: inputs are taken a few hundred at a time.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from headcount.errors import InputError
from headcount.scores import Side, inactive_when
from headcount.summaries import Summary
from headcount.units import UnitMap

_CELLS_A_CHUNK = 20_000_000  # scores held at once: 80 MB of float32


def beyond(values: NDArray[np.floating], threshold: float, side: Side) -> NDArray[np.bool_]:
    """Where a score is inactive: strictly below the threshold, or above it for scores inactive when high; not where NaN."""
    return values < threshold if side == "low" else values > threshold


def score_names(scores: xr.Dataset | Summary) -> list[str]:
    """The scores that were measured."""
    return [str(name) for name in (scores.scores if isinstance(scores, Summary) else scores.data_vars)]


def common_scores(scores: xr.Dataset | Summary, thresholds: xr.Dataset) -> list[str]:
    """The scores that have thresholds, in the order of ``scores``. InputError when there is none."""
    names = [name for name in score_names(scores) if name in thresholds]
    if not names:
        raise InputError(
            f"No score has both values and thresholds: {', '.join(score_names(scores)) or 'nothing'} was measured, "
            f"{', '.join(map(str, thresholds.data_vars)) or 'nothing'} has thresholds. Run `headcount thresholds`."
        )
    return names


def chunks(scores: xr.Dataset, columns: int = 1) -> Iterator[slice]:
    """Slices of the examples of which ``columns`` scores at a time fit in memory."""
    cells = max(1, scores.sizes["layer"] * scores.sizes["head"] * columns)
    step = max(1, _CELLS_A_CHUNK // cells)
    for start in range(0, max(1, scores.sizes["example"]), step):
        yield slice(start, start + step)


def values_of(scores: xr.Dataset, name: str, examples: slice) -> NDArray[np.floating]:
    """One score on some inputs, [example, layer, head]; what is not finite is NaN, and so neither active nor inactive."""
    values = scores[name].isel(example=examples).transpose("example", "layer", "head").to_numpy()
    return values if np.isfinite(values).all() else np.where(np.isfinite(values), values, np.nan)


def count_beyond(
    scores: xr.Dataset,
    name: str,
    cuts: NDArray[np.float64],
    of: Callable[[NDArray[np.floating]], NDArray[np.floating]] = lambda values: values,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """On how many inputs one score is beyond each threshold, ``[cut, layer, head]``, and has a value, ``[layer, head]``.

    ``of`` makes the values of other units out of those of heads, ``[example, layer, head]``.
    """
    side, inactive, measured = inactive_when(name, scores), 0, 0
    for examples in chunks(scores):
        values = of(values_of(scores, name, examples))
        beyond_each = [beyond(values, cut, side).sum(axis=0) for cut in cuts]
        inactive += np.reshape(beyond_each, (len(cuts), *values.shape[1:]))  # also where there is none
        measured += (~np.isnan(values)).sum(axis=0)
    return np.asarray(inactive), np.asarray(measured)


def head_frequency(scores: xr.Dataset | Summary, thresholds: xr.Dataset) -> xr.Dataset:
    """On which share of the inputs each query head is inactive; where neurons were counted by layer, neurons of each layer.

    From a summary it is off by less than the share of one of the head's, or layer's, bins, 1.6% of its values wide.

    Returns:
        One float64 variable a score, dims (share, layer, head), or (share, layer): of the inputs on which the head has a
        finite score; NaN for a head that never has.

    Raises:
        InputError: no score with thresholds.
    """
    names = common_scores(scores, thresholds)
    if isinstance(scores, Summary):
        return _summarised_frequency(scores, thresholds, names)
    dims = "share", "layer", "head"
    return xr.Dataset(
        {name: (dims, ratio(*count_beyond(scores, name, thresholds[name].to_numpy()))) for name in names},
        coords={"share": thresholds["share"], "layer": scores["layer"], "head": scores["head"]},
    )


def _summarised_frequency(scores: Summary, thresholds: xr.Dataset, names: list[str]) -> xr.Dataset:
    found = {}
    for name in names:
        low = inactive_when(name, scores) == "low"
        shares = [scores.scores[name].share_of_inputs(cut, below=low) for cut in thresholds[name].to_numpy()]
        found[name] = (("share", "layer", "head")[: 1 + shares[0].ndim], np.stack(shares))
    coords = {"share": thresholds["share"], "layer": scores.layers}
    return xr.Dataset(found, coords=coords if counted_by_layer(scores) else coords | {"head": scores.heads["head"]})


def counted_by_layer(scores: xr.Dataset | Summary | None) -> bool:
    """Whether of each unit the moments alone are known, as of neurons, which are too many to count each by itself."""
    return isinstance(scores, Summary) and any(of_score.parts == "layer" for of_score in scores.scores.values())


def counted_table(scores: Summary, thresholds: xr.Dataset) -> pd.DataFrame:
    """As ``frequency_table``, of units that were counted by layer: always and never are exact, by each unit's extremes."""
    rows = []
    for name in common_scores(scores, thresholds):
        of_score, below = scores.scores[name], inactive_when(name, scores) == "low"
        known = int((of_score.moments.count > 0).sum())
        of_layers, counts = (of_score.moments.count > 0).sum(1), of_score.of_parts[0]
        for share, cut in zip(thresholds["share"].to_numpy(), thresholds[name].to_numpy(), strict=True):
            often = of_score.share_of_inputs(cut, below=below)
            always, never = (int(found(cut, below=below).sum()) for found in (of_score.always, of_score.never))
            rows.append({
                "score": name, "share": float(share), "heads": known, "always": always, "sometimes": known - always - never,
                "never": never, "mean_inactive": float((often * of_layers)[counts > 0].sum()),
            })  # fmt: skip
    return pd.DataFrame(rows)


def group_frequency(scores: xr.Dataset, thresholds: xr.Dataset, units: UnitMap) -> xr.Dataset:
    """On which share of the inputs each key-value group is inactive as a whole: all query heads that share its keys.

    Only then could its keys and values be left out of the computation and of the cache. With one query head a group
    (multi-head attention) it is ``head_frequency``.

    Args:
        scores: dims (example, layer, head).
        thresholds: dim (share,).
        units: the model's layers, in the order of ``scores``.

    Returns:
        One float64 variable a score, dims (share, layer, group): of the inputs on which all its heads have a finite
        score; NaN for a group of which that never holds, and for one that a layer does not have.

    Raises:
        InputError: no score with thresholds, or units of other layers than the scores'.
    """
    names = common_scores(scores, thresholds)
    if units.layer_indices != scores["layer"].values.tolist():
        raise InputError(
            f"This map of units has layers {units.layer_indices}, the scores {scores['layer'].values.tolist()}. "
            "Pass that of the model that was measured."
        )
    found = {}
    for name in names:
        of_groups = partial(units.reduce, to="group", by="most_active", inactive_when=inactive_when(name, scores))
        counts = count_beyond(scores, name, thresholds[name].to_numpy(), of_groups)
        found[name] = ("share", "layer", "group"), ratio(*counts)
    groups = np.arange(max(len(layer.members("group")) for layer in units.layers))
    return xr.Dataset(found, coords={"share": thresholds["share"], "layer": scores["layer"], "group": groups})


def frequency_table(heads: xr.Dataset, groups: xr.Dataset | None = None) -> pd.DataFrame:
    """How many heads are always, sometimes and never inactive.

    Args:
        heads: from ``head_frequency``.
        groups: from ``group_frequency``, for the same scores and shares.

    Returns:
        One row a score and share: score, share, heads, always, sometimes, never, mean_inactive (heads inactive on an input,
        on average); with ``groups`` also groups, groups_always, groups_sometimes, groups_never and groups_mean_inactive,
        where a group is inactive when all its query heads are.
    """
    rows = []
    for name in map(str, heads.data_vars):
        for number, share in enumerate(heads["share"].to_numpy()):
            row = {"score": name, "share": float(share)} | _counts(heads[name][number].to_numpy(), "heads", "")
            if groups is not None:
                row |= _counts(groups[name][number].to_numpy(), "groups", "groups_")
            rows.append(row)
    return pd.DataFrame(rows)


def _counts(frequency: NDArray[np.float64], total: str, prefix: str) -> dict[str, float]:
    known = frequency[~np.isnan(frequency)]
    always, never = int((known == 1).sum()), int((known == 0).sum())
    return {
        total: len(known),
        f"{prefix}always": always,
        f"{prefix}sometimes": len(known) - always - never,
        f"{prefix}never": never,
        f"{prefix}mean_inactive": float(known.sum()),
    }


def ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """``part`` over ``whole``, which may be one for several parts; NaN where there is none."""
    of = np.broadcast_to(whole, part.shape)
    return np.divide(part, of, out=np.full(part.shape, np.nan), where=of > 0)
