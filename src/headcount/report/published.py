"""The paper's results in the form in which the report sets them beside others."""

from functools import cache

import numpy as np
import pandas as pd

from headcount.published import published_curves, published_table


@cache
def paper_ranks() -> pd.Series:
    """Each score's mean rank over the paper's 14 models."""
    curves = published_curves()
    return pd.Series({str(score): rows["rank"].mean() for score, rows in curves.groupby("score")})


def published_models() -> list[str]:
    """Hub ids of the 14 models."""
    return _models()["model"].tolist()


def published_shares() -> dict[str, np.ndarray]:
    """Score → removable share within 1 point of MMLU of each model."""
    models = _models()
    scores = [str(name) for name in models.select_dtypes("number").columns if name != "best"]
    return {score: models[score].to_numpy(dtype=float) for score in scores}


@cache
def _models() -> pd.DataFrame:
    table = published_table()
    return table.loc[table["model"] != "mean"]
