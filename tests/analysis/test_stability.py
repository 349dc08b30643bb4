import numpy as np
import pytest
import xarray as xr

from headcount.analysis.stability import head_stability, threshold_stability, threshold_transfer
from headcount.errors import InputError
from headcount.published import published_thresholds


def cuts(share, **thresholds):
    return xr.Dataset({name: ("share", values) for name, values in thresholds.items()}, coords={"share": share})


def test_thresholds_by_hand():
    table = threshold_stability({
        "one": cuts([0.0, 0.1], ahon=[1.0, 2.0], aeqd=[5.0, 6.0]),
        "two": cuts([0.1, 0.3], ahon=[4.0, 7.0]),
    })  # fmt: skip
    # Only ahon and share 0.1 are in both: 2 and 4, which lie 2 apart around 3.
    assert table.to_dict("records") == [
        {"score": "ahon", "share": 0.1, "one": 2, "two": 4, "spread": pytest.approx(2 / 3)}
    ]


def test_the_papers_thresholds_spread_as_it_says():
    # OLMo-2-7B-Instruct at 15%: awft 0.077 / 0.265 / 0.109 on MMLU / PIQA / WinoGrande, ahon_ln 0.457 / 0.435 / 0.473.
    published = published_thresholds()
    of_model = published[published["model"] == "allenai/OLMo-2-1124-7B-Instruct"]
    wide = {
        task: xr.Dataset.from_dataframe(rows.pivot(index="share", columns="score", values="threshold"))
        for task, rows in of_model.groupby("task")
    }
    table = threshold_stability(wide).set_index(["score", "share"])
    assert table.loc[("awft", 0.15), ["mmlu", "piqa", "winogrande"]].tolist() == pytest.approx(
        [0.077, 0.265, 0.109], abs=5e-4
    )
    assert table.loc[("awft", 0.15), "spread"] == pytest.approx(0.188 / 0.1505, abs=0.01)
    assert table.loc[("ahon_ln", 0.15), "spread"] == pytest.approx(0.038 / 0.4551, abs=0.005)


def test_a_threshold_used_elsewhere():
    def scores(values):
        return xr.Dataset({"ahon": (("example", "layer", "head"), np.reshape(values, (-1, 1, 2)))})

    # Below 2: half of one's, a quarter of two's (NaN does not count). Below 4: all but one of four, two of four.
    table = threshold_transfer(
        {"one": scores([1.0, 1, 2, 4]), "two": scores([1.0, 3, 4, np.nan, 5, np.nan])},
        {"one": cuts([0.5], ahon=[2.0]), "two": cuts([0.5], ahon=[4.0])},
    ).set_index(["found_on", "used_on"])["share_inactive"]
    assert table.to_dict() == {("one", "one"): 0.5, ("two", "one"): 0.75, ("one", "two"): 0.25, ("two", "two"): 0.5}


def test_the_same_heads():
    def frequency(values):
        return xr.Dataset(
            {"ahon": (("share", "layer", "head"), np.reshape(values, (1, 2, 3)))}, coords={"share": [0.4]}
        )

    nan = float("nan")
    table = head_stability({
        "one": frequency([1.0, 0.8, 0.5, 0.2, 0.0, nan]),
        "two": frequency([0.9, 0.3, 0.6, 0.1, 0.0, nan]),
        "same everywhere": frequency([0.5, 0.5, 0.5, 0.5, 0.5, nan]),
    }).set_index(["one", "other"])  # fmt: skip
    # Ranks 5 4 3 2 1 and 5 3 4 2 1: 1 − 6 · 2 / (5 · 24). The two most often inactive of 5: heads 0, 1 and heads 0, 2.
    assert table.loc[("one", "two"), "correlation"] == pytest.approx(0.9)
    assert table.loc[("one", "two"), "iou"] == pytest.approx(1 / 3)
    assert np.isnan(table.loc[("one", "same everywhere"), "correlation"])
    assert len(table) == 3


def test_one_benchmark_cannot_be_compared():
    for compare in (threshold_stability, head_stability):
        with pytest.raises(InputError, match="at least two benchmarks; got one"):
            compare({"one": cuts([0.1], ahon=[1.0])})
