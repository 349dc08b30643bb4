import numpy as np
import pandas as pd
import pytest
import xarray as xr

from headcount.analysis import (
    RunTables,
    Statistics,
    accuracy_table,
    all_tables,
    curve_table,
    head_frequency,
    removable_table,
    tables,
)
from headcount.analysis.outcomes import by_benchmark
from headcount.published import published_curves
from headcount.summaries import Summary
from headcount.thresholding import thresholds
from headcount.units import LayerUnits, UnitMap

FEW = Statistics(resamples=50)
GEOMETRY = UnitMap(
    layers=tuple(LayerUnits(index=i, num_attention_heads=4, num_key_value_heads=2, head_dim=8) for i in range(2))
)


def outcomes(*tasks, seed=0):
    """60 questions a task, right at random; the baseline, two scores at two shares, random heads at two."""
    rng = np.random.default_rng(seed)
    frames = []
    for policy, score, share, right in [
        ("baseline", "", 0.0, 0.9), ("ahon_ln:0.1", "ahon_ln", 0.1, 0.89), ("ahon_ln:0.2", "ahon_ln", 0.2, 0.8),
        ("awft:0.1", "awft", 0.1, 0.8), ("awft:0.2", "awft", 0.2, 0.6), ("random:0.1", "random", 0.1, 0.6),
        ("random:0.2", "random", 0.2, 0.4),
    ]:  # fmt: skip
        for task in tasks:
            frames.append(pd.DataFrame({
                "policy": policy, "curve": score, "share_asked": share, "task": task, "doc_id": np.arange(60),
                "share_off": share * 0.9, "acc": (rng.random(60) < right).astype(float),
            }))  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def saved(model="m", data="t", *, seed=0, **parts):
    scores = xr.Dataset(
        {
            name: (("example", "layer", "head"), np.random.default_rng(seed + i).random((20, 2, 4), dtype=np.float32))
            for i, name in enumerate(("ahon_ln", "awft"))
        },
        coords={"layer": [0, 1], "head": np.arange(4)},
    )
    held = {"scores": scores, "thresholds": thresholds(scores, [0.1, 0.3]), "units": GEOMETRY} | parts
    return RunTables(model=model, data=data, **held)


def test_tables_are_those_of_the_single_functions():
    run = saved(outcomes=outcomes("t"), tasks=["t"], statistics=Statistics(resamples=200))
    tables = all_tables([run])
    assert set(tables) == {
        "accuracy", "points", "removable", "by_curve", "inactive", "heads", "groups", "agreement", "layers", "cumulative",
    }  # fmt: skip
    for name, columns in (
        ("accuracy", ["model", "task"]),
        ("removable", ["model", "task"]),
        ("heads", ["model", "data"]),
    ):
        assert (tables[name][columns] == ["m", "t"]).all(axis=None)
    accuracy = accuracy_table(run.outcomes, resamples=200)
    pd.testing.assert_frame_equal(tables["accuracy"][list(accuracy.columns)], accuracy)
    removable = removable_table(run.outcomes, resamples=200)
    pd.testing.assert_frame_equal(tables["removable"][list(removable.columns)], removable)
    relative = removable_table(run.outcomes, relative=True, resamples=200)
    assert tables["removable"]["low_relative"].tolist() == relative["low"].tolist()
    ranks = curve_table(tables["points"]).set_index("curve")["rank"].to_dict()
    assert tables["removable"].set_index("curve")["rank"].to_dict() == ranks
    assert {"random_accuracy", "above_random"} <= set(tables["points"])
    frequency = head_frequency(run.scores, run.thresholds)["awft"].sel(share=0.3, layer=1, head=2).item()
    row = tables["heads"].query("score == 'awft' and share == 0.3 and layer == 1 and head == 2")
    assert row["frequency"].item() == frequency
    assert tables["inactive"]["groups"].tolist() == [4] * 4
    assert len(tables["agreement"]) == 2 * 2  # shares × ordered pairs of different scores


def test_several_data_of_a_model_and_several_models_of_data():
    tables = all_tables([saved("m", "t"), saved("m", "u", seed=5), saved("n", "u", seed=9)])
    assert set(tables["thresholds"]["data"]) == {"t", "u"}
    assert set(tables["thresholds"]["model"]) == {"m"}
    assert tables["transfer"][["found_on", "used_on"]].drop_duplicates().shape == (4, 2)
    assert tables["stability"][["model", "one", "other"]].drop_duplicates().to_numpy().tolist() == [["m", "t", "u"]]
    assert tables["distances"][["data", "one", "other"]].drop_duplicates().to_numpy().tolist() == [["u", "m", "n"]]
    assert "ranks" not in tables


def test_ranks_are_compared_among_benchmarks_and_with_published_models():
    run = RunTables(model="m", data="t+u", tasks=["t", "u"], outcomes=outcomes("t_one", "t_two", "u"), statistics=FEW)
    tables = all_tables([run])
    assert set(tables["accuracy"]["task"]) == {"t", "u"}
    assert tables["accuracy"].query("task == 't'")["num_questions"].unique().tolist() == [120]
    assert len(tables["ranks"]) == 1
    with_published = all_tables([run], published=published_curves())["ranks"]
    assert len(with_published) == 16 * 15 / 2
    pair = with_published.query("model == 'Qwen/Qwen2.5-3B' and other_model == 'm' and other_task == 'u'")
    assert -1 <= pair["rank_correlation"].item() <= 1


def test_the_metric_is_the_tasks_own_where_there_is_no_accuracy():
    answers = outcomes("t").rename(columns={"acc": "exact_match"})
    tables = all_tables([RunTables(model="m", data="t", outcomes=answers, statistics=FEW)])
    assert set(tables["accuracy"]["metric"]) == {"exact_match"}


def test_nothing_held_gives_nothing():
    assert all_tables([RunTables(model="m", data="t")]) == {}
    only_scores = all_tables([saved(thresholds=None, units=None)])
    assert set(only_scores) == {"layers", "cumulative"}
    assert "groups" not in all_tables([saved(units=None)])


def test_tasks_are_sorted_into_the_benchmarks_asked_for():
    frame = outcomes("mmlu_anatomy", "mmlu_pro_law", "piqa", "mmluish")
    groups = by_benchmark(frame, ["mmlu", "mmlu_pro"])
    assert {name: sorted(of["task"].unique()) for name, of in groups.items()} == {
        "mmlu": ["mmlu_anatomy"], "mmlu_pro": ["mmlu_pro_law"], "piqa": ["piqa"], "mmluish": ["mmluish"],
    }  # fmt: skip


@pytest.mark.parametrize("published", [None, published_curves()])
def test_inputs_are_left_as_they_were(published):
    run = saved(outcomes=outcomes("t"), tasks=["t"], statistics=FEW)
    before = run.outcomes.copy(), run.scores.copy(deep=True)
    all_tables([run], published=published)
    pd.testing.assert_frame_equal(run.outcomes, before[0])
    xr.testing.assert_equal(run.scores, before[1])


def test_summaries_give_what_does_not_need_single_scores():
    scores = saved().scores.assign_coords(num_tokens=("example", np.full(20, 9)))
    run, other = saved(scores=scores), saved("n", scores=Summary.of(scores))
    kept = RunTables(model="m", data="u", scores=Summary.of(scores), thresholds=run.thresholds, units=GEOMETRY)
    tables, exact = all_tables([kept]), all_tables([run])
    assert set(tables) == {"inactive", "heads", "cumulative"}
    both = tables["heads"].merge(exact["heads"], on=["score", "share", "layer", "head"])
    assert len(both) == len(exact["heads"])
    # A head's bin is 1.6% of its values wide: with 20 inputs a threshold in it counts one of them for another share.
    assert (both["frequency_x"] - both["frequency_y"]).abs().max() <= 1 / 20
    assert tables["cumulative"]["value"].tolist() == pytest.approx(exact["cumulative"]["value"].tolist(), rel=1e-3)
    together = all_tables([run, kept, other])
    # The same 160 scores, between which a summary interpolates.
    assert together["distances"]["distance"].max() < 1 / 160
    transfer = together["transfer"].query("model == 'm'")
    expected = transfer["share_inactive"] - transfer["share"]
    assert expected.abs().max() <= 1.5 / (20 * 8)


def test_a_table_is_added_in_one_place(monkeypatch):
    counted = {"questions": lambda run: None if run.outcomes is None else pd.DataFrame({"count": [len(run.outcomes)]})}
    monkeypatch.setattr(tables, "_OF_RUNS", counted | dict(tables._OF_RUNS))
    found = all_tables([saved(outcomes=outcomes("t"), tasks=["t"], statistics=FEW), saved("n")])["questions"]
    assert found.to_dict("records") == [{"model": "m", "data": "t", "count": 420}]


def test_each_table_is_made_once(monkeypatch):
    made = []
    monkeypatch.setattr(
        tables, "accuracy_table", lambda *given, **how: made.append(how) or accuracy_table(*given, **how)
    )
    run = saved(outcomes=outcomes("t"), tasks=["t"], statistics=Statistics(margin=0.02, resamples=50, seed=3))
    assert made == []
    assert run.benchmarks["t"].accuracy is run.answers.accuracy
    all_tables([run])
    assert made == [
        {"metric": "acc", "higher_is_better": None, "margin": 0.02, "confidence": 0.95, "resamples": 50, "seed": 3}
    ]


def test_ways_to_choose_by_one_score_are_curves_of_their_own():
    whole = outcomes("t")
    kept = whole[whole["curve"] != ""].assign(
        policy=lambda rows: rows["policy"] + " except layer 0", curve=lambda rows: rows["curve"] + " except layer 0"
    )
    run = RunTables(model="m", data="t", tasks=["t"], outcomes=pd.concat([whole, kept]), statistics=FEW)
    names = ["ahon_ln", "awft", "random"]
    assert run.answers.removable["curve"].tolist() == names + [f"{name} except layer 0" for name in names]
    found = all_tables([run])
    shares = found["removable"].set_index("curve")["removable_share"]
    assert found["by_curve"]["best_curve"].tolist() == [shares.idxmax()]
    bounds = found["removable"].loc[found["removable"]["is_lower_bound"], "curve"].tolist()
    assert found["by_curve"]["lower_bounds"].item().split("; ") == (bounds or [""])
