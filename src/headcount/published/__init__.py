"""The results published with arXiv 2504.03889 (ICLR 2026), as data, and the paper's tables recomputed from them.

Raw numbers, as the authors give them, are in ``mmlu.csv`` and ``thresholds.csv``; their first line names the source. Here
they are data frames in headcount's own terms: hub ids, score ids, fractions of 1.
"""

from collections.abc import Callable
from functools import cache, wraps
from importlib.resources import files

import numpy as np
import pandas as pd

from headcount.analysis.curves import curve_table, removable_by_curve
from headcount.errors import InputError, nearest
from headcount.policies import RANDOM
from headcount.scores import get_score


def _read(name: str) -> pd.DataFrame:
    with files("headcount.published").joinpath(name).open(encoding="utf-8") as stream:
        return pd.read_csv(stream, comment="#")


def _made_once(make: Callable[[], pd.DataFrame]) -> Callable[[], pd.DataFrame]:
    """Every caller has a copy of its own."""
    made = cache(make)
    return wraps(make)(lambda: made().copy())


@_made_once
def published_points() -> pd.DataFrame:
    """The paper's curves on MMLU, 5-shot: 14 models, 14 scores, 7 shares each.

    Rows are in the order in which they were published, because the paper's areas depend on it where points of a curve lie
    at one realised share: six of Qwen2.5-0.5B's ``ftvvn`` do. In the order of the shares asked for, that curve's area
    would be 0.45 instead of 0.36, and the mean rank of ``ahon_ln`` 2.00 instead of the paper's 1.93.

    Returns:
        model (hub id), task, curve (a score, or random), share_asked, threshold, share_realised, accuracy, baseline. The
        baseline is the accuracy with random heads at share 0, as in the paper. The threshold of ``random`` is its probability.
    """
    raw = _read("mmlu.csv")
    cuts = published_thresholds().rename(columns={"score": "curve"})
    hub_ids = {name.partition("/")[2]: name for name in cuts["model"]}
    points = pd.DataFrame({
        "model": [hub_ids[name] for name in raw["model"]],
        "task": "mmlu",
        "curve": [get_score(name).id for name in raw["head_type"]],
        "threshold": raw["threshold"],
        "share_realised": raw["percent_zeroed"] / 100,
        "accuracy": raw["accuracy"] / 100,
    })  # fmt: skip
    points = points.merge(cuts, how="left", on=["model", "task", "curve", "threshold"], validate="one_to_one")
    points["share_asked"] = points["share"].where(points["curve"] != RANDOM, points["threshold"])
    untouched = points.loc[(points["curve"] == RANDOM) & (points["share_asked"] == 0), ["model", "accuracy"]]
    points = points.merge(untouched.rename(columns={"accuracy": "baseline"}), on="model")
    return points.loc[
        :, ["model", "task", "curve", "share_asked", "threshold", "share_realised", "accuracy", "baseline"]
    ]


@_made_once
def published_thresholds() -> pd.DataFrame:
    """Thresholds of 13 scores (15 for three models on MMLU) at 7 shares, for 14 models on MMLU, PIQA and WinoGrande.

    Measured by the authors in bfloat16, so most are rounded to 8 bits.

    Returns:
        model (hub id), task, score, share, threshold.
    """
    raw = _read("thresholds.csv")
    return pd.DataFrame({
        "model": raw["model"].str.replace("_", "/", n=1),
        "task": raw["task"],
        "score": [get_score(name).id for name in raw["head_type"]],
        "share": raw["quantile"],
        "threshold": raw["threshold"],
    })  # fmt: skip


@_made_once
def published_curves() -> pd.DataFrame:
    """``curve_table`` of the published points: removable shares, areas and ranks of 14 scores for 14 models."""
    return curve_table(published_points())


def published_table() -> pd.DataFrame:
    """Table 2 of the paper, recomputed from its points: removable shares within 1 point of MMLU, fractions of 1.

    Returns:
        One row a model, then their mean: model, task, one column a score, best_curve and best: the best score other than
        ``awft``, picked for each model on the same data.
    """
    return removable_by_curve(published_curves(), not_best=["awft"])


def published_model(name: str) -> str:
    """The hub id of one of the 14 published models, from its hub id or the part after the slash.

    Raises:
        InputError: another model.
    """
    ids = published_points()["model"].unique().tolist()
    for known in ids:
        if name.lower() in (known.lower(), known.partition("/")[2].lower()):
            return known
    raise InputError(f"There are no published results for {name!r}, only for 14 models. {nearest(name, ids)}")


def published_threshold(model: str, score: str, share: float, *, task: str = "mmlu") -> float:
    """The published threshold of one model, score and share.

    Args:
        model: hub id or the part after the slash.
        score: id or alias.
        share: one of the paper's, 0, 0.05, …, 0.30.
        task: ``mmlu``, ``piqa`` or ``winogrande``.

    Raises:
        InputError: no such threshold was published.
    """
    rows = published_thresholds()
    wanted = {"task": task, "model": published_model(model), "score": get_score(score).id}
    for column, value in wanted.items():
        chosen = rows.loc[rows[column] == value]
        if chosen.empty:
            raise InputError(
                f"No threshold of {wanted['score']} was published for {wanted['model']} on {task}: "
                f"there is no {column} {value!r}. {nearest(value, set(rows[column]))}"
            )
        rows = chosen
    at_share = rows.loc[np.isclose(rows["share"], share)]
    if at_share.empty:
        known = ", ".join(f"{known:g}" for known in rows["share"])
        raise InputError(f"Thresholds of {wanted['score']} were published at shares {known}, not at {share:g}.")
    return float(at_share["threshold"].iloc[0])
