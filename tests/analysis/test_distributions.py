import numpy as np
import pytest
import xarray as xr

from headcount.analysis import distributions
from headcount.analysis.distributions import cumulative, distances, layer_profile
from headcount.errors import InputError
from headcount.thresholding import thresholds


def scores(**values):
    """Scores, each [example][layer][head]."""
    arrays = {name: (("example", "layer", "head"), np.asarray(rows, dtype=np.float32)) for name, rows in values.items()}
    layers = next(iter(arrays.values()))[1].shape[1]
    return xr.Dataset(arrays, coords={"layer": 2 * np.arange(layers)})


def test_cumulative_distribution_is_that_of_the_thresholds():
    table = scores(ahon=np.random.default_rng(0).random((3, 2, 7)))
    found = cumulative(table, levels=21)
    cuts = thresholds(table, found["share"].tolist())
    assert found["value"].tolist() == pytest.approx(cuts["ahon"].to_numpy().tolist())
    assert found["value"].is_monotonic_increasing
    assert found["value"].iloc[-1] == table["ahon"].max()


def test_what_was_not_measured_has_no_distribution():
    assert cumulative(scores(ahon=[[[np.nan]]])).empty
    assert cumulative(scores(ahon=[[[np.nan, 1.0]]]), levels=3)["value"].tolist() == [1, 1, 1]


def test_distances_by_hand():
    found = distances({
        "base": scores(ahon=[[[0, 1], [3, np.nan]]], awft=[[[0.5, 0.5], [0.5, 0.5]]]),
        "moved": scores(ahon=[[[2, 3, 5]]]),
        "wider": scores(ahon=[[[0, 1], [3, 9]]]),
    }).set_index(["score", "one", "other"])["distance"]  # fmt: skip
    assert found["ahon", "base", "moved"] == pytest.approx(2)  # everything by 2
    # 0, 1, 3 against 0, 1, 3, 9: quantiles 0 0 / 0 1, 1 1 / 1 3, 3 3 / 3 9 over twelfths: 0·3 + 1·1 + 0·2 + 2·2 + 0·1 + 6·3.
    assert found["ahon", "base", "wider"] == pytest.approx((1 * 1 + 2 * 2 + 6 * 3) / 12)
    assert len(found) == 3


def test_thinning_changes_a_distance_by_less_than_the_range_over_the_number_kept(monkeypatch):
    rng = np.random.default_rng(0)
    pair = {"a": scores(ahon=rng.random((50, 4, 10)) ** 2), "b": scores(ahon=rng.random((40, 4, 10)))}
    exact = distances(pair)["distance"].item()
    monkeypatch.setattr(distributions, "_MOST_VALUES", 100)
    assert distances(pair)["distance"].item() == pytest.approx(exact, abs=1 / 100)


def test_layers_by_hand():
    table = layer_profile(scores(ahon=[[[1, 2], [5, np.nan]], [[3, 4], [7, np.nan]]]), shares=[0.5])
    assert table.to_dict("records") == [
        {"score": "ahon", "layer": 0, "mean": 2.5, "q50": 2.5},
        {"score": "ahon", "layer": 2, "mean": 6.0, "q50": 6.0},
    ]
    assert layer_profile(scores(ahon=[[[np.nan]]]))[["mean", "q10"]].isna().all(axis=None)


def test_one_model_has_no_distance():
    with pytest.raises(InputError, match="at least two; got base"):
        distances({"base": scores(ahon=[[[0.0]]])})
