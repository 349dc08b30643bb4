"""The paper's results in the form in which the report sets them beside others."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from headcount.policies import is_random
from headcount.published import published_curves, published_table


def paper_ranks(scores: Iterable[str]) -> pd.Series:
    """Mean over the paper's 14 models of each score's rank among these scores; NaN for those that the paper has not."""
    scores = list(scores)
    curves = published_curves()
    among = curves.loc[curves["curve"].isin(scores)]
    ranks = among.groupby("model")["normalised_area"].rank(ascending=False)
    return ranks.groupby(among["curve"]).mean().reindex(scores)


def published_models() -> list[str]:
    """Hub ids of the 14 models."""
    return _models()["model"].tolist()


def published_shares() -> dict[str, np.ndarray]:
    """Score → removable share within 1 point of MMLU of each model; random last."""
    models = _models()
    scores = [str(name) for name in models.select_dtypes("number").columns if name != "best"]
    scores.sort(key=is_random)
    return {score: models[score].to_numpy(dtype=float) for score in scores}


def _models() -> pd.DataFrame:
    table = published_table()
    return table.loc[table["model"] != "mean"]
