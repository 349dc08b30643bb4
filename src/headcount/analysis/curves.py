"""Curves of accuracy against the share of heads off: one for each way to choose heads, and what follows from them.

Every function here takes or gives data frames. *Points* have the columns model, task, curve, share_realised, accuracy
and baseline (the untouched model's accuracy); shares and accuracies are fractions of 1. Where they have the column
higher_is_better, accuracy is of a metric that is better that way; without it, higher is better. *Curves* are what
``curve_table`` makes of points, one row each.
"""

from collections.abc import Iterable, Sequence
from typing import cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from headcount.analysis.removable import last_crossing
from headcount.analysis.statistics import Statistics
from headcount.errors import InputError
from headcount.policies import is_random

_POINT = ("model", "task", "curve", "share_realised", "accuracy", "baseline")
_WHERE = ["model", "task"]


def curve_points(accuracy: pd.DataFrame, *, model: str, task: str) -> pd.DataFrame:
    """Points from ``accuracy_table``: each curve's policies, and the untouched model at share 0.

    Accuracy is the baseline's plus the paired change, so a policy that answered fewer questions is not compared with
    the baseline on others. Policies of no curve (fixed heads) have no points.

    Returns:
        model, task, curve, share_asked, share_realised, accuracy, baseline, higher_is_better.
    """
    baseline = float(accuracy["accuracy"].iloc[0])
    of_curves = accuracy.loc[accuracy["curve"] != ""]
    curves = list(dict.fromkeys(of_curves["curve"]))
    untouched = pd.DataFrame({"curve": curves, "share_asked": 0.0, "share_realised": 0.0, "change": 0.0})
    points = pd.concat([untouched, of_curves.loc[:, list(untouched.columns)]], ignore_index=True)
    points = points.assign(
        model=model,
        task=task,
        accuracy=baseline + points["change"],
        baseline=baseline,
        higher_is_better="higher_is_better" not in accuracy or accuracy["higher_is_better"].iloc[0] is not False,
        number=points["curve"].map(curves.index),
    )
    columns = ["model", "task", "curve", "share_asked", "share_realised", "accuracy", "baseline", "higher_is_better"]
    return points.sort_values(["number", "share_realised"], kind="stable", ignore_index=True).loc[:, columns]


def normalised_area(shares: ArrayLike, accuracies: ArrayLike) -> float:
    """Mean height of a curve over its own range of shares: trapezoids, divided by the range; NaN without a range.

    Source: arXiv 2504.03889.

    >>> normalised_area([0.0, 0.1, 0.3], [0.6, 0.5, 0.3])  # (0.1 · 0.55 + 0.2 · 0.4) / 0.3
    0.45
    """
    x, y = np.asarray(shares, dtype=float), np.asarray(accuracies, dtype=float)
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    width = x[-1] - x[0] if len(x) else 0.0
    return float(np.trapezoid(y, x) / width) if width > 0 else float("nan")


def curve_table(points: pd.DataFrame, *, margin: float = Statistics.margin) -> pd.DataFrame:
    """What each curve says: how many heads it lets one switch off, and how it ranks among those of its model and task.

    Args:
        points: see the module.
        margin: the fall that is tolerated: of accuracy as a fraction of 1 for ``removable_share`` (0.01 is 1 point), as a
            fraction of the baseline's for ``removable_share_relative`` (0.01 is 1 percent of it). A rise where lower is
            better.

    Returns:
        One row a curve, in order of first appearance: model, task, curve, baseline, removable_share, is_lower_bound,
        removable_share_relative, is_lower_bound_relative (see ``last_crossing``), largest_share_measured,
        normalised_area, rank (1 for the best area, means for ties).
    """
    _check(points, _POINT)
    rows = []
    for key, of_curve in points.groupby([*_WHERE, "curve"], sort=False):
        model, task, curve = cast(tuple[str, str, str], key)
        x, y = of_curve["share_realised"].to_numpy(dtype=float), of_curve["accuracy"].to_numpy(dtype=float)
        baseline, sign = float(of_curve["baseline"].iloc[0]), _sign(of_curve)
        share, is_lower_bound = last_crossing(x, sign * y, sign * baseline - margin)
        relative, is_lower_bound_relative = last_crossing(x, sign * y, sign * baseline - margin * abs(baseline))
        rows.append({
            "model": model, "task": task, "curve": curve, "baseline": baseline,
            "removable_share": share, "is_lower_bound": is_lower_bound,
            "removable_share_relative": relative, "is_lower_bound_relative": is_lower_bound_relative,
            "largest_share_measured": float(x.max()), "normalised_area": normalised_area(x, y), "rank": sign,
        })  # fmt: skip
    table = pd.DataFrame(rows)
    gain = table.assign(rank=table["rank"] * table["normalised_area"])
    table["rank"] = gain.groupby(_WHERE, sort=False)["rank"].rank(ascending=False)
    return table


def removable_by_curve(
    curves: pd.DataFrame, *, value: str = "removable_share", not_best: Iterable[str] = ()
) -> pd.DataFrame:
    """Removable shares side by side: each curve used everywhere, and the best one picked for each model and task.

    The best is an oracle: it is picked on the same answers that it is judged by. Table 2 of arXiv 2504.03889 is
    ``not_best=["awft"]``: the best of the *other* functions.

    Args:
        curves: from ``curve_table``.
        value: ``removable_share`` or ``removable_share_relative``.
        not_best: curves that the best is not picked among.

    Returns:
        One row a model and task, then one with model ``mean`` over the models of each task with several; columns model,
        task, one a curve (NaN where a model lacks it), best_curve, best, and lower_bounds: the curves, joined by semicolons,
        that do not fall that far, so that the number (and a mean or best of it) is a lower bound.
    """
    wide = curves.pivot(index=_WHERE, columns="curve", values=value)
    models = pd.MultiIndex.from_frame(curves.loc[:, _WHERE].drop_duplicates())
    wide = wide.reindex(index=models, columns=list(dict.fromkeys(curves["curve"])))
    others = wide.drop(columns=[curve for curve in not_best if curve in wide])
    wide["best_curve"], wide["best"] = others.idxmax(axis=1), others.max(axis=1)
    bound = value.replace("removable_share", "is_lower_bound")
    of_curves = curves.loc[curves[bound]].groupby(_WHERE)["curve"].agg("; ".join)
    wide["lower_bounds"] = of_curves.reindex(wide.index, fill_value="")
    table = wide.reset_index()
    means = [
        {
            "model": "mean", "task": task, **of_task.select_dtypes("number").mean(),
            "lower_bounds": "; ".join(dict.fromkeys("; ".join(filter(None, of_task["lower_bounds"])).split("; "))),
        }
        for task, of_task in table.groupby("task", sort=False)
        if len(of_task) > 1
    ]  # fmt: skip
    return pd.concat([table, pd.DataFrame(means)], ignore_index=True).rename_axis(columns=None)


def against_random(points: pd.DataFrame) -> pd.DataFrame:
    """Points with what random heads cost at the same share: ``random_accuracy`` and ``above_random``, how much better.

    Random's curve is joined by straight lines; NaN beyond its range, and where the model and task have none.
    """
    _check(points, _POINT)
    found = []
    for _, group in points.groupby(_WHERE, sort=False):
        curve = next(filter(is_random, group["curve"]), None)
        drawn = group.loc[group["curve"] == curve].sort_values("share_realised")
        height = np.full(len(group), np.nan)
        if len(drawn):
            x, y = drawn["share_realised"].to_numpy(dtype=float), drawn["accuracy"].to_numpy(dtype=float)
            height = np.interp(group["share_realised"], x, y, left=np.nan, right=np.nan)
        above = _sign(group) * (group["accuracy"] - height)
        found.append(pd.DataFrame({"random_accuracy": height, "above_random": above}, index=group.index))
    at_random = pd.concat(found)
    return points.assign(random_accuracy=at_random["random_accuracy"], above_random=at_random["above_random"])


def rank_correlation(curves: pd.DataFrame) -> pd.DataFrame:
    """Spearman's correlation of the curves' ranks between every two models (and tasks).

    Returns:
        Square, rows and columns (model, task). NaN for two with fewer than 3 curves in common.
    """
    return curves.pivot(index="curve", columns=_WHERE, values="rank").corr("spearman", min_periods=3)


def top_overlap(curves: pd.DataFrame, *, top: int = 5) -> pd.DataFrame:
    """Overlap (intersection over union) of the ``top`` curves by rank between every two models (and tasks).

    Returns:
        Square, rows and columns (model, task).
    """
    best = {key: set(group.nsmallest(top, "rank")["curve"]) for key, group in curves.groupby(_WHERE, sort=False)}
    names = pd.MultiIndex.from_tuples(cast(list[tuple[str, str]], list(best)), names=_WHERE)
    return pd.DataFrame(
        [[len(a & b) / len(a | b) for b in best.values()] for a in best.values()], index=names, columns=names
    )


def _sign(points: pd.DataFrame) -> int:
    """−1 where the accuracy of these points, of one model and task, is of a metric that is better when lower."""
    return -1 if "higher_is_better" in points and not bool(points["higher_is_better"].iloc[0]) else 1


def _check(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    if missing := [name for name in columns if name not in frame.columns]:
        raise InputError(f"The points of curves have columns {', '.join(columns)}; missing: {', '.join(missing)}.")
