"""What was kept in a run comes back."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from headcount.errors import InputError, RunError
from headcount.store import begin_run, is_run, open_run
from headcount.store.scores import _Part as Shards
from tests.store.parts import FACTS, forge, metrics, outcomes, shard_files, table

HOSTILE = [
    "../../etc/passwd",
    "a/b\\c:d*?",
    "\x00",
    "</script>",
    "",
    "ä" * 300,
    "ahon_ln:0.1",
    "ahon_ln 0.1",
    "-rf",
    ".",
]


def test_a_new_run_is_there_and_empty(run):
    assert is_run(run.path)
    again = open_run(run.path)
    assert again.manifest.facts().items() >= {"format": 5, "command": "headcount test", **FACTS}.items()
    assert {"headcount", "python", "torch", "numpy", "system"} <= again.manifest.environment.keys()
    assert not again.has_scores
    assert again.scores() is None
    assert again.summary() is None
    assert again.thresholds() is None
    assert again.outcomes() is None
    assert again.metrics() is None
    assert again.policies() == []
    assert again.measured() == set()
    assert repr(again) == f"<Run {str(run.path)!r}: some/model, 0 files of scores, 0 of outcomes>"


def test_scores_come_back_from_several_shards_in_order(run):
    whole = table(7)
    for shard, part in ((1, slice(4, 6)), (0, slice(0, 4)), (2, slice(6, 7))):  # they may come in any order
        run.add_scores(shard, whole.isel(example=part))
    found = open_run(run.path).scores()
    xr.testing.assert_identical(found.load(), whole)
    assert run.measured() == {0, 1, 2}


def test_one_score_is_read_without_the_others(run, monkeypatch):
    whole = table(6)
    run.add_scores(0, whole.isel(example=slice(0, 4)))
    run.add_scores(1, whole.isel(example=slice(4, 6)))
    read, get = [], Shards.read
    monkeypatch.setattr(Shards, "read", lambda part, name: read.append((part.file.stem, name)) or get(part, name))
    scores = open_run(run.path).scores()
    assert {name for _, name in read} == {"num_tokens"}
    read.clear()
    np.testing.assert_array_equal(scores["ahon"].isel(example=5).values, whole["ahon"].values[5])
    assert read == [("000001", "ahon")]  # nor without the shards in which nothing was asked for
    read.clear()
    np.testing.assert_array_equal(
        scores["ahon"].isel(example=[5, 0], head=2).values, whole["ahon"].values[[5, 0], :, 2]
    )
    np.testing.assert_array_equal(scores["ahon"].isel(example=slice(None, None, 3)), whole["ahon"][::3])
    np.testing.assert_array_equal(scores["ahon"], whole["ahon"])
    assert {name for _, name in read} == {"ahon"}
    read.clear()
    np.testing.assert_array_equal(scores["ahon"].mean("head"), whole["ahon"].mean("head"))
    assert read == []  # what was read whole is kept


def test_scores_are_kept_in_half_the_space_if_asked(tmp_path):
    whole = table(40)
    sizes = {}
    for dtype in ("float32", "float16"):
        with begin_run(tmp_path / dtype, **FACTS | {"settings": {"scores_dtype": dtype}}) as run:
            run.add_scores(0, whole)
        sizes[dtype] = shard_files(run.path)[0].stat().st_size
        found = open_run(run.path).scores()
        assert found["awft"].dtype == np.float32
        np.testing.assert_allclose(found["awft"], whole["awft"], rtol=0 if dtype == "float32" else 2**-11, atol=1e-7)
    assert sizes["float16"] < 0.6 * sizes["float32"]


def test_a_score_that_float16_cannot_hold_is_refused(tmp_path):
    with begin_run(tmp_path / "run", **FACTS | {"settings": {"scores_dtype": "float16"}}) as run:
        with pytest.raises(InputError, match=r"awft reaches 7e\+04.*float32"):
            run.add_scores(0, table(2) * 0 + 7e4)
        assert run.measured() == set()


def test_thresholds_come_back_exactly(run):
    cuts = xr.Dataset(
        {"awft": ("share", [0.1, 1 / 3, np.inf]), "ahon": ("share", [1e-30, 2.0, np.nextafter(3, 4)])},
        coords={"share": [0.0, 0.1, 0.30000000000000004]},
    )
    run.set_thresholds(cuts)
    xr.testing.assert_identical(open_run(run.path).thresholds(), cuts)


def test_outcomes_keep_lists_nan_and_the_order_in_which_policies_were_asked_for(run):
    run.update(policies=[{"policy": policy} for policy in ("baseline", "z:0.1", "a:0.1")])
    run.add_outcomes(["a:0.1", "z:0.1"], [3, 4, 5], pd.concat([outcomes("a:0.1"), outcomes("z:0.1")]))
    run.add_outcomes(["baseline"], [0, 1, 2], outcomes("baseline"))
    run.add_outcomes(["z:0.1"], [0, 1, 2], outcomes("z:0.1"))
    again = open_run(run.path)
    assert again.policies() == ["baseline", "z:0.1", "a:0.1"]
    assert again.answered() == {"baseline": {0, 1, 2}, "z:0.1": {0, 1, 2, 3, 4, 5}, "a:0.1": {3, 4, 5}}
    found, expected = again.outcomes(), pd.concat([outcomes("z:0.1")] * 2, ignore_index=True)
    assert found["policy"].tolist() == ["baseline"] * 3 + ["z:0.1"] * 6 + ["a:0.1"] * 3
    found = found[found["policy"] == "z:0.1"].reset_index(drop=True)
    assert list(found["loglikelihoods"][0])[:2] == [-1.5, -2.0]
    assert np.isnan(found["loglikelihoods"][0][2])
    assert found["loglikelihoods"][1] is None
    pd.testing.assert_frame_equal(found.drop(columns="loglikelihoods"), expected.drop(columns="loglikelihoods"))
    some = again.outcomes(["a:0.1"], ["task", "acc", "no_such_column"])
    assert list(some.columns) == ["task", "acc"]
    assert len(some) == 3
    assert again.outcomes(["nobody"]) is None


def test_metrics_come_back(run):
    run.set_metrics(metrics("a"))
    pd.testing.assert_frame_equal(open_run(run.path).metrics(), metrics("a"))
    (run.path / "metrics.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunError, match=r"metrics.parquet"):
        open_run(run.path).metrics()


def test_columns_that_some_shards_lack_or_have_nothing_in(run):
    run.add_outcomes(["a"], [0, 1], outcomes("a", 2).assign(response=None))
    run.add_outcomes(["a"], [2, 3], outcomes("a", 2).assign(response="spelled", more=1.0))
    found = run.outcomes()
    assert found["response"].isna().tolist() == [True, True, False, False]
    assert found["more"].isna().tolist() == [True, True, False, False]


def test_hostile_policy_labels_stay_in_their_folder_and_apart(run):
    for label in HOSTILE:
        run.add_outcomes([label], [0, 1, 2], outcomes(label))
    assert set(open_run(run.path).policies()) == set(HOSTILE)
    assert {file.parent for file in shard_files(run.path.parent)} == {run.path / "outcomes"}
    assert len(shard_files(run.path)) == len(HOSTILE)
    assert all(len(file.name.encode()) < 100 for file in shard_files(run.path))


@pytest.mark.parametrize(
    "thresholds",
    [
        [],
        {},
        3,
        {"share": [0.1], "scores": {"awft": [1, 2]}},
        {"share": [0.1], "scores": {"awft": [float("nan")]}},
        {"share": [0.1, 0.1], "scores": {"awft": [1, 2]}},
        {"share": [1.1], "scores": {}},
    ],
)
def test_damaged_thresholds_are_an_error(run, thresholds):
    forge(run.path / "run.json", lambda facts: facts | {"thresholds": thresholds})
    with pytest.raises(RunError, match=r"run.json.*\(thresholds.*\)"):
        open_run(run.path)


def test_a_shard_written_again_replaces_the_old_one(run):
    run.add_scores(0, table(3))
    run.add_scores(0, table(3, seed=1))
    assert len(shard_files(run.path)) == 1
    xr.testing.assert_identical(open_run(run.path).scores().load(), table(3, seed=1))


def test_thresholds_keep_of_how_many_values_they_are(run):
    left_out = {"not_finite": 2, "of": 10, "layers": [5]}
    run.set_thresholds(
        xr.Dataset({"awft": ("share", [1.0]), "ahon": ("share", [2.0], left_out)}, coords={"share": [0.1]})
    )
    kept = open_run(run.path).thresholds()
    assert kept is not None
    assert [kept[name].attrs for name in ("awft", "ahon")] == [{}, left_out]
