"""Do two scores call the same heads inactive?"""

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headcount.analysis.inactivity import beyond, chunks, common_scores, ratio, values_of
from headcount.scores import Side, inactive_when


def score_agreement(scores: xr.Dataset, thresholds: xr.Dataset) -> xr.Dataset:
    """How the sets of heads that any two scores call inactive at the same share overlap.

    ``iou`` is intersection over union, ``precision`` the part of ``score``'s heads that ``other`` calls inactive too. Both
    come aggregated (a head on an input is one member of the set) and per input (the mean over the inputs on which the
    ratio is defined). A head for which a score was not measured is not inactive by it.

    Source: arXiv 2504.03889, which finds at most 0.58 and 0.73 between scores of different kinds.

    Args:
        scores: dims (example, layer, head).
        thresholds: dim (share,).

    Returns:
        Dataset with dims (share, score, other): iou, precision, iou_per_input, precision_per_input; NaN where a set is
        empty throughout.

    Raises:
        InputError: no score with thresholds.
    """
    names = common_scores(scores, thresholds)
    sides: list[Side] = [inactive_when(name, scores) for name in names]
    size = thresholds.sizes["share"], len(names), len(names)
    both = np.zeros(size)  # heads on inputs that are inactive by the one and by the other
    per_input = {name: (np.zeros(size), np.zeros(size)) for name in ("iou", "precision")}  # sum, inputs
    for examples in chunks(scores, columns=2 * len(names)):
        values = [values_of(scores, name, examples) for name in names]
        for number in range(size[0]):
            cuts = [float(thresholds[name][number]) for name in names]
            inactive = np.stack([beyond(v, cut, n) for v, cut, n in zip(values, cuts, sides, strict=True)], axis=1)
            sets = inactive.reshape(*inactive.shape[:2], -1).astype(np.float32)  # [example, score, head of any layer]
            shared = (sets @ sets.transpose(0, 2, 1)).astype(np.float64)  # [example, score, other]
            both[number] += shared.sum(axis=0)
            for name, ratios in _ratios(shared).items():
                per_input[name][0][number] += np.nansum(ratios, axis=0)
                per_input[name][1][number] += (~np.isnan(ratios)).sum(axis=0)
    aggregated = _ratios(both)
    dims = "share", "score", "other"
    means = {name: ratio(total, count) for name, (total, count) in per_input.items()}
    return xr.Dataset(
        {name: (dims, ratios) for name, ratios in aggregated.items()}
        | {f"{name}_per_input": (dims, mean) for name, mean in means.items()},
        coords={"share": thresholds["share"], "score": names, "other": names},
    )


def _ratios(shared: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """From sizes of intersections, [..., score, other], with those of the sets themselves on the diagonal."""
    own = np.diagonal(shared, axis1=-2, axis2=-1)[..., :, None]  # [..., score, 1]
    union = own + own.swapaxes(-1, -2) - shared
    return {"iou": ratio(shared, union), "precision": ratio(shared, own)}
