"""The head map's data: what each head scored, and how often it was inactive at each share."""

import math
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headcount.errors import InputError
from headcount.scores import get_score


def head_maps(scores: xr.Dataset, thresholds: xr.Dataset | None) -> dict[str, Any]:
    """Layers × heads of each score, as plain lists for JSON; None for a head that does not exist or was not measured.

    Means have 5 significant digits and percentages one decimal: for looking at, not for computing with.
    """
    entries = []
    for name in map(str, scores.data_vars):
        values = scores[name].transpose("example", "layer", "head").to_numpy().astype(np.float64)
        measured = ~np.isnan(values)
        count = measured.sum(axis=0)  # [layer, head]
        total = np.where(measured, values, 0.0).sum(axis=0)
        mean = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
        entries.append({
            "score": name,
            **_facts(name),
            "mean": _lists(mean, digits=5),
            "inactive": _inactive(name, values, count, thresholds),
        })  # fmt: skip
    shares = thresholds["share"].values.tolist() if thresholds is not None else []
    return {
        "scores": entries,
        "shares": shares,
        "layers": _labels(scores, "layer"),
        "heads": _labels(scores, "head"),
        "inputs": int(scores.sizes["example"]),
    }


def _inactive(
    name: str, values: NDArray[np.float64], count: NDArray[np.int64], thresholds: xr.Dataset | None
) -> list[list[list[float | None]]]:
    """Percent of inputs on which each head is inactive, [share][layer][head]; empty without thresholds for it."""
    if thresholds is None or name not in thresholds or not (facts := _facts(name))["inactive_when"]:
        return []
    maps = []
    for threshold in thresholds[name].to_numpy():
        beyond = values < threshold if facts["inactive_when"] == "low" else values > threshold
        percent = np.divide(100.0 * beyond.sum(axis=0), count, out=np.full(count.shape, np.nan), where=count > 0)
        maps.append(_lists(percent.round(1), digits=4))
    return maps


def _facts(name: str) -> dict[str, str]:
    """Name, unit and direction of a score; empty where this installation does not know it."""
    try:
        score = get_score(name)
    except InputError:
        return {"name": name, "unit": "", "inactive_when": ""}
    return {"name": score.name, "unit": "" if score.unit == "1" else score.unit, "inactive_when": score.inactive_when}


def _labels(scores: xr.Dataset, dim: str) -> list[int]:
    return [int(label) for label in scores[dim].values]


def _lists(matrix: NDArray[np.float64], digits: int) -> list[list[float | None]]:
    return [[float(f"{v:.{digits}g}") if math.isfinite(v) else None for v in row] for row in matrix.tolist()]
