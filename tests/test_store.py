import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from headcount import store
from headcount.errors import RunError
from headcount.store import Run, differences, is_run, open_run, write_atomically

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


def table(examples, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(examples, 3, 4)).astype("f4")
    values[0, 2, 3] = np.nan
    return xr.Dataset(
        {"awft": (("example", "layer", "head"), values), "ahon": (("example", "layer", "head"), 2 * values)},
        coords={"layer": [0, 2, 5], "head": np.arange(4), "num_tokens": ("example", rng.integers(1, 9, examples))},
        attrs={"seed": 3, "model": "some/model", "num_cut": 0},
    )


def outcomes(policy, questions=3):
    nan = float("nan")
    return pd.DataFrame({
        "policy": policy, "score": "", "share_asked": nan, "threshold": nan, "task": "sums",
        "doc_id": range(questions), "doc_hash": [f"{i:x}" for i in range(questions)],
        "acc": [1.0, nan, 0.0][:questions], "loglikelihoods": [[-1.5, -2.0, nan], None, [-0.25]][:questions],
        "target": ["1", "über", ""][:questions], "share_zeroed": [0.0, 0.5, 1 / 3][:questions],
    })  # fmt: skip


def metrics(policy):
    return pd.DataFrame({"policy": [policy], "task": ["sums"], "metric": ["acc"], "value": [0.1]})


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", model={"name": "some/model"}, data={}, settings={"seed": 0})


def leftovers(folder):
    return [file for file in Path(folder).rglob("*") if file.is_file() and file.name.startswith(".")]


def test_a_new_run_is_there_and_empty(run):
    assert is_run(run.path)
    again = open_run(run.path)
    assert again.manifest == {
        "format": store.FORMAT, "model": {"name": "some/model"}, "data": {}, "settings": {"seed": 0}, "files": {},
    }  # fmt: skip
    assert not again.has_scores
    assert again.scores() is None
    assert again.thresholds() is None
    assert again.outcomes() is None
    assert again.metrics() is None
    assert again.policies() == []
    assert repr(again) == f"<Run {str(run.path)!r}: some/model, 0 files>"


def test_scores_come_back_from_several_shards_in_order(run):
    whole = table(7)
    for part in (slice(0, 4), slice(4, 6), slice(6, 7)):
        run.add_scores(whole.isel(example=part))
    xr.testing.assert_identical(open_run(run.path).scores(), whole)
    assert len(list((run.path / "scores").iterdir())) == 3
    assert leftovers(run.path) == []


def test_many_shards_keep_their_order(run):
    whole = table(12)
    for i in range(12):
        run.add_scores(whole.isel(example=[i]))
    xr.testing.assert_identical(open_run(run.path).scores(), whole)


def test_thresholds_come_back_exactly(run):
    cuts = xr.Dataset(
        {"awft": ("share", [0.1, 1 / 3, np.inf]), "ahon": ("share", [1e-30, 2.0, np.nextafter(3, 4)])},
        coords={"share": [0.0, 0.1, 0.30000000000000004]},
    )
    run.set_thresholds(cuts)
    xr.testing.assert_identical(open_run(run.path).thresholds(), cuts)


def test_outcomes_keep_lists_nan_and_the_order_of_policies(run):
    for policy in ("baseline", "z:0.1", "a:0.1"):
        run.add_outcomes(policy, outcomes(policy), metrics(policy))
    again = open_run(run.path)
    assert again.policies() == ["baseline", "z:0.1", "a:0.1"]
    found, expected = again.outcomes(), outcomes("z:0.1")
    assert found is not None
    found = found[found["policy"] == "z:0.1"].reset_index(drop=True)
    assert list(found["loglikelihoods"][0])[:2] == [-1.5, -2.0]
    assert np.isnan(found["loglikelihoods"][0][2])
    assert found["loglikelihoods"][1] is None
    pd.testing.assert_frame_equal(found.drop(columns="loglikelihoods"), expected.drop(columns="loglikelihoods"))
    pd.testing.assert_frame_equal(again.metrics(), pd.concat(map(metrics, again.policies()), ignore_index=True))


def test_a_policys_outcomes_are_replaced(run):
    run.add_outcomes("a", outcomes("a", 3), metrics("a"))
    run.add_outcomes("a", outcomes("a", 2), metrics("a"))
    assert len(open_run(run.path).outcomes()) == 2
    assert len(list((run.path / "outcomes").iterdir())) == 1
    run.add_outcomes("a", outcomes("a", 2), metrics("a"))  # the same again
    assert len(open_run(run.path).outcomes()) == 2


def test_hostile_policy_labels_stay_in_their_folder_and_apart(run):
    for label in HOSTILE:
        run.add_outcomes(label, outcomes(label), metrics(label))
    assert open_run(run.path).policies() == HOSTILE
    files = [file for file in run.path.parent.rglob("*") if file.is_file()]
    assert {file.parent for file in files} == {run.path, run.path / "outcomes", run.path / "metrics"}
    assert len(list((run.path / "outcomes").iterdir())) == len(HOSTILE)


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:40] + b"\xff" + b[41:], lambda b: b + b"x"]
)
@pytest.mark.parametrize("folder", ["scores", "outcomes", "metrics"])
def test_a_damaged_file_is_named(run, damage, folder):
    run.add_scores(table(3))
    run.add_outcomes("a", outcomes("a"), metrics("a"))
    (file,) = (run.path / folder).iterdir()
    file.write_bytes(damage(file.read_bytes()))
    read = {"scores": Run.scores, "outcomes": Run.outcomes, "metrics": Run.metrics}[folder]
    with pytest.raises(RunError, match=file.name):
        read(open_run(run.path))


def test_a_missing_file_is_named(run):
    run.add_scores(table(3))
    (run.path / "scores/00000.safetensors").unlink()
    with pytest.raises(RunError, match=r"00000.safetensors.*No such file"):
        open_run(run.path).scores()


def test_a_file_that_matches_its_checksum_but_is_not_what_it_says_is_named(run):
    run._add({"scores/00000.safetensors": b"\x02\0\0\0\0\0\0\0{}"})
    with pytest.raises(RunError, match=r"00000.safetensors"):
        open_run(run.path).scores()


def test_files_outside_the_manifest_are_ignored(run):
    run.add_scores(table(3))
    (run.path / "scores/00001.safetensors").write_bytes(b"half")
    assert open_run(run.path).scores().sizes["example"] == 3


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match=r"is not empty.*-o"):
        Run.create(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_empty_folder_and_a_missing_one_are_used(tmp_path):
    (tmp_path / "empty").mkdir()
    Run.create(tmp_path / "empty")
    Run.create(tmp_path / "a/b/c")
    assert is_run(tmp_path / "empty")
    assert is_run(tmp_path / "a/b/c")


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match=r"cannot be written"):
        Run.create(tmp_path / "file")
    with pytest.raises(RunError, match=r"cannot be written"):
        Run.create(tmp_path / "file/run")
    with pytest.raises(RunError, match=r"file"):
        open_run(tmp_path / "file")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(RunError, match=r"cannot be written \(Permission denied\).*-o"):
        Run.create(tmp_path / "run")
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunError, match=r"cannot be written \(Permission denied\)"):
        Run.create(tmp_path / "other")


def test_no_run_says_how_to_make_one(tmp_path):
    assert not is_run(tmp_path)
    with pytest.raises(RunError, match=r"holds no run.*headcount measure"):
        open_run(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"format": 1}', '{"format": 1, "files": []}', "\udcff"])
def test_a_damaged_manifest_is_an_error(run, content):
    (run.path / "run.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(RunError, match=r"run.json"):
        open_run(run.path)


@pytest.mark.parametrize("version", [2, "1", None])
def test_another_format_is_refused(run, version):
    manifest = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps(manifest | {"format": version}))
    with pytest.raises(RunError, match=f"format {version}, this headcount reads format 1. Upgrade"):
        open_run(run.path)


def full_disk(monkeypatch, name):
    """Writing out a file of this name fails at the last moment, as on a full disk."""
    replace = Path.replace

    def fail(self, target):
        if Path(target).name == name:
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / "page.html"
    write_atomically(file, b"old")

    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunError, match=r"page.html.*No space left on device.*Free space"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]


def test_a_failed_shard_leaves_the_run_readable(run, monkeypatch):
    whole = table(4)
    run.add_scores(whole.isel(example=[0, 1]))
    full_disk(monkeypatch, "00001.safetensors")
    with pytest.raises(RunError, match=r"No space"):
        run.add_scores(whole.isel(example=[2, 3]))
    monkeypatch.undo()
    assert leftovers(run.path) == []
    again = open_run(run.path)
    again.add_scores(whole.isel(example=[2, 3]))
    xr.testing.assert_identical(open_run(run.path).scores(), whole)


def test_failing_to_replace_thresholds_keeps_the_old_ones(run, monkeypatch):
    first = xr.Dataset({"awft": ("share", [0.1])}, coords={"share": [0.1]})
    run.add_outcomes("a", outcomes("a", 3), metrics("a"))
    run.set_thresholds(first)
    full_disk(monkeypatch, "run.json")
    with pytest.raises(RunError, match=r"No space"):
        run.set_thresholds(first * 2)
    monkeypatch.undo()
    xr.testing.assert_identical(run.thresholds(), first)
    xr.testing.assert_identical(open_run(run.path).thresholds(), first)
    assert len(open_run(run.path).outcomes()) == 3


@pytest.mark.parametrize("thresholds", [[], {}, 3, {"share": [0.1], "scores": {"awft": [1, 2]}}])
def test_damaged_thresholds_are_an_error(run, thresholds):
    manifest = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps(manifest | {"thresholds": thresholds}))
    with pytest.raises(RunError, match=r"run.json.* cannot be read.*headcount thresholds"):
        open_run(run.path).thresholds()


def test_failing_to_replace_outcomes_leaves_the_run_readable(run, monkeypatch):
    run.add_outcomes("a", outcomes("a", 3), metrics("a"))
    full_disk(monkeypatch, "run.json")
    with pytest.raises(RunError, match=r"No space"):
        run.add_outcomes("a", outcomes("a", 2), metrics("b"))
    monkeypatch.undo()
    again = open_run(run.path)
    assert len(again.outcomes()) == 3
    assert again.metrics()["policy"].tolist() == ["a"]


def test_differences_are_readable():
    expected = {"seed": 1, "name": "a", "same": [1]}
    assert list(differences(expected, {"seed": 0, "same": [1], "more": 2})) == [
        "seed is 0 there and 1 here",
        "name is None there and 'a' here",
    ]
