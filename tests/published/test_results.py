import numpy as np
import pytest

from headcount.analysis.curves import curve_table, rank_correlation
from headcount.errors import InputError
from headcount.published import (
    published_curves,
    published_model,
    published_points,
    published_table,
    published_threshold,
    published_thresholds,
)


def test_table_2_follows_from_the_raw_points():
    # The means that arXiv 2504.03889 states, in percent of heads.
    table = published_table().set_index("model")
    stated = {"awft": 4.61, "best": 12.18, "ahon_ln": 11.03, "lthon_ln": 8.34, "random": 1.18}
    means = {column: round(100 * table.loc["mean", column], 2) for column in stated}
    assert means == stated
    assert len(table) == 15
    assert table["best_curve"].iloc[:-1].value_counts()["ahon_ln"] == 9


def test_mean_rank_of_ahon_ln_is_as_stated():
    curves = published_curves()
    ranks = curves.groupby("curve")["rank"].mean()
    assert ranks["ahon_ln"] == pytest.approx(1.93, abs=0.005)
    assert ranks.idxmin() == "ahon_ln"
    assert not curves["is_lower_bound"].any()  # every published curve falls by a point
    assert rank_correlation(curves).shape == (14, 14)
    # Six points of one curve lie at one share, and their order decides its area.
    in_order = curve_table(published_points().sort_values(["model", "curve", "share_asked"]))
    assert in_order.groupby("curve")["rank"].mean()["ahon_ln"] == 2


def test_points_are_complete_and_in_headcounts_terms():
    points = published_points()
    assert len(points) == 14 * 14 * 7
    assert not points.isna().any(axis=None)
    ordered = points.sort_values(["model", "curve", "share_asked"])
    assert ordered["share_asked"].tolist() == [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3] * 14 * 14
    assert points["share_realised"].between(0, 1).all()
    point = points.set_index(["model", "curve", "share_asked"]).loc[("meta-llama/Llama-3.1-8B", "ahon_ln", 0.15)]
    assert (point["share_realised"], point["accuracy"]) == pytest.approx((0.146935, 0.644994), abs=1e-6)
    assert point["baseline"] == pytest.approx(0.651973, abs=1e-6)


def test_a_table_handed_out_can_be_changed_without_harm():
    points, thresholds = published_points(), published_thresholds()
    points["accuracy"], thresholds["threshold"] = np.nan, 0.0
    assert not published_points().isna().any(axis=None)
    assert published_threshold("Llama-3.2-3B", "awft", 0.05) == 0.9296875


def test_thresholds_that_the_paper_discusses():
    # OLMo-2-7B-Instruct at 15% on MMLU, PIQA and WinoGrande: awft 0.077 / 0.265 / 0.109, ahon_ln 0.457 / 0.435 / 0.473.
    model = "allenai/OLMo-2-1124-7B-Instruct"
    tasks = "mmlu", "piqa", "winogrande"
    of_awft = [published_threshold(model, "Dormant", 0.15, task=task) for task in tasks]
    of_ahon_ln = [published_threshold(model, "ahon_ln", 0.15, task=task) for task in tasks]
    assert of_awft == pytest.approx([0.077, 0.265, 0.109], abs=5e-4)
    assert of_ahon_ln == pytest.approx([0.457, 0.435, 0.473], abs=5e-4)


def test_models_are_known_by_hub_id_and_by_name():
    assert published_model("Qwen/Qwen2.5-7B") == "Qwen/Qwen2.5-7B"
    assert published_model("llama-3.1-8b") == "meta-llama/Llama-3.1-8B"
    with pytest.raises(InputError, match=r"no published results for 'Qwen2\.5-72B', only for 14 models\. Did you mean"):
        published_model("Qwen2.5-72B")


@pytest.mark.parametrize(
    ("score", "share", "task", "message"),
    [
        ("ahon_ln", 0.1, "arc_easy", "no task 'arc_easy'.*mmlu, piqa, winogrande"),
        ("random", 0.1, "mmlu", "No threshold of random was published for meta-llama/Llama-3.1-8B"),
        ("fhon", 0.1, "piqa", "No threshold of fhon was published.*on piqa"),
        ("ahon_ln", 0.12, "mmlu", "at shares 0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, not at 0.12"),
        ("ahonln", 0.1, "mmlu", "Unknown score 'ahonln'"),
    ],
)
def test_what_was_not_published_is_refused_by_name(score, share, task, message):
    with pytest.raises(InputError, match=message):
        published_threshold("Llama-3.1-8B", score, share, task=task)
