import numpy as np
import pandas as pd
import pytest

from headcount.analysis.curves import (
    against_random,
    curve_points,
    curve_table,
    normalised_area,
    rank_correlation,
    removable_by_curve,
    top_overlap,
)
from headcount.errors import InputError


def points(model, curves, *, baseline=0.6, task="t"):
    return pd.concat([
        pd.DataFrame({
            "model": model, "task": task, "curve": score, "share_realised": [x for x, _ in curve],
            "accuracy": [y for _, y in curve], "baseline": baseline,
        })
        for score, curve in curves.items()
    ], ignore_index=True)  # fmt: skip


@pytest.fixture
def two_models():
    # Model m. a: 0.6 to 0.2, then down to 0.5 at 0.3: a point below at 0.21, a percent (0.006) at 0.206; area over 0.3:
    # (0.2 · 0.6 + 0.1 · 0.55) / 0.3 = 0.5833. b: straight down to 0.3 at 0.3: 0.01, 0.006, 0.45. random: to 0 at 0.3.
    return pd.concat([
        points("m", {"a": [(0, 0.6), (0.2, 0.6), (0.3, 0.5)], "b": [(0.3, 0.3), (0, 0.6)], "random": [(0, 0.6), (0.3, 0.0)]}),
        points("n", {"a": [(0, 0.6), (0.1, 0.3)], "b": [(0, 0.6), (0.2, 0.6)], "random": [(0, 0.6), (0.3, 0.0)]}),
    ], ignore_index=True)  # fmt: skip


def test_what_curves_say_by_hand(two_models):
    table = curve_table(two_models)
    m = table[table["model"] == "m"].set_index("curve")
    assert list(m.index) == ["a", "b", "random"]
    assert m["removable_share"].tolist() == pytest.approx([0.21, 0.01, 0.005])
    assert m["removable_share_relative"].tolist() == pytest.approx([0.206, 0.006, 0.003])
    assert m["normalised_area"].tolist() == pytest.approx([0.175 / 0.3, 0.45, 0.3])
    assert m["rank"].tolist() == [1, 2, 3]
    n = table[table["model"] == "n"].set_index("curve")
    assert n["is_lower_bound"].tolist() == [False, True, False]
    assert n.loc["b", "removable_share"] == n.loc["b", "largest_share_measured"] == 0.2
    assert n["rank"].to_dict() == {"b": 1, "a": 2, "random": 3}


def test_best_and_fixed_scores_side_by_side(two_models):
    table = removable_by_curve(curve_table(two_models)).set_index("model")
    assert list(table.index) == ["m", "n", "mean"]
    assert table["best_curve"].tolist()[:2] == ["a", "b"]
    assert table.loc["mean", "best"] == pytest.approx((0.21 + 0.2) / 2)
    assert table.loc["mean", "a"] == pytest.approx(
        (0.21 + 0.1 / 30) / 2
    )  # n's a falls a point a thirtieth of the way to 0.1
    without_a = removable_by_curve(curve_table(two_models), not_best=["a", "unknown"]).set_index("model")
    assert without_a["best_curve"].tolist()[:2] == ["b", "b"]
    assert without_a.loc["m", "a"] == pytest.approx(0.21)  # still shown
    relative = removable_by_curve(curve_table(two_models), value="removable_share_relative").set_index("model")
    assert relative.loc["m", "best"] == pytest.approx(0.206)


def test_one_model_has_no_mean(two_models):
    alone = two_models[two_models["model"] == "m"]
    assert removable_by_curve(curve_table(alone))["model"].tolist() == ["m"]


def test_random_at_the_same_share(two_models):
    table = against_random(two_models.iloc[::-1])  # any order of rows
    at = table[(table["model"] == "m") & (table["curve"] == "a")].set_index("share_realised")
    assert at.loc[0.2, "random_accuracy"] == pytest.approx(0.2)
    assert at.loc[0.2, "above_random"] == pytest.approx(0.4)
    beyond = against_random(points("m", {"a": [(0.5, 0.1)], "random": [(0, 0.6), (0.3, 0.0)]}))
    assert np.isnan(beyond.loc[0, "random_accuracy"])
    assert against_random(points("m", {"a": [(0.1, 0.1)]}))["above_random"].isna().all()


def test_models_are_compared_by_the_order_of_their_scores():
    def model(name, heights):
        return points(name, {s: [(0, 0.6), (0.1, y)] for s, y in zip("abcd", heights, strict=True)})

    table = curve_table(pd.concat([model("x", [4, 3, 2, 1]), model("y", [40, 30, 20, 10]), model("z", [3, 4, 1, 2])]))
    correlation = rank_correlation(table)
    assert correlation.loc[("x", "t"), ("y", "t")] == pytest.approx(1)
    # Differences of ranks 1, 1, 1, 1: 1 − 6 · 4 / (4 · 15).
    assert correlation.loc[("x", "t"), ("z", "t")] == pytest.approx(0.6)
    overlap = top_overlap(table, top=1)
    assert overlap.loc[("x", "t"), ("y", "t")] == 1
    assert overlap.loc[("x", "t"), ("z", "t")] == 0
    assert top_overlap(table, top=3).loc[("x", "t"), ("z", "t")] == 0.5  # a, b, c and a, b, d


def test_points_of_ones_own_run():
    accuracy = pd.DataFrame({
        "policy": ["baseline", "b:0.2", "a:0.1", "b:0.1", "fixed"],
        "curve": ["", "b", "a", "b", ""],
        "share_asked": [np.nan, 0.2, 0.1, 0.1, np.nan],
        "share_realised": [0.0, 0.18, 0.1, 0.09, 0.3],
        "accuracy": [0.5, 0.45, 0.9, 0.5, 0.1],  # a answered other questions; its change counts
        "change": [0.0, -0.05, 0.01, 0.0, -0.4],
    })  # fmt: skip
    table = curve_points(accuracy, model="m", task="t")
    assert table["curve"].tolist() == ["b", "b", "b", "a", "a"]
    assert table["share_realised"].tolist() == [0, 0.09, 0.18, 0, 0.1]
    assert table["accuracy"].tolist() == pytest.approx([0.5, 0.5, 0.45, 0.5, 0.51])
    assert (table["baseline"] == 0.5).all()
    assert curve_table(table).set_index("curve").loc["b", "removable_share"] == pytest.approx(0.108)  # 0.09 + 0.09 / 5


def test_a_curve_without_a_range_has_no_area():
    assert np.isnan(normalised_area([0.1, 0.1], [0.5, 0.4]))
    assert np.isnan(normalised_area([], []))


def test_other_tables_are_refused():
    with pytest.raises(InputError, match="missing: baseline"):
        curve_table(points("m", {"a": [(0, 0.6)]}).drop(columns="baseline"))
