import json
import os
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from headcount.errors import InputError, RunError
from headcount.store import Run, begin_run, is_run, open_run, write_atomically
from headcount.store.files import write_shard
from headcount.store.run import FORMAT
from headcount.store.scores import _Part as Shards
from headcount.summaries import Summary

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


FACTS = {"model": {"name": "some/model", "fingerprint": "ab"}, "data": {"tasks": ["sums"]}, "settings": {"seed": 0}}


@pytest.fixture
def run(tmp_path):
    """A new run whose only writer is the test."""
    with begin_run(tmp_path / "run", **FACTS, command="headcount test") as run:
        yield run


def contents(folder):
    """Every file's bytes, but for the record of how the run was made."""
    files = {str(file.relative_to(folder)): file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}
    made = json.loads(files.pop("run.json"))
    for name in ("history.jsonl", ".lock", ".holder.json"):
        files.pop(name, None)
    return files | {"run.json": {name: made[name] for name in made if name not in ("created", "command")}}


def shard_files(folder):
    return sorted(file for file in Path(folder).rglob("*") if file.suffix in (".safetensors", ".parquet"))


def test_a_new_run_is_there_and_empty(run):
    assert is_run(run.path)
    again = open_run(run.path)
    assert again.manifest.items() >= {"format": FORMAT, "command": "headcount test", **FACTS}.items()
    assert {"headcount", "python", "torch", "numpy", "system"} <= again.manifest["environment"].keys()
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


def test_summaries_do_not_depend_on_the_order_of_shards(tmp_path):
    parts = [Summary.of(table(3, seed=seed)) for seed in range(5)]
    for name, order in (("a", [0, 1, 2, 3, 4]), ("b", [3, 1, 4, 0, 2])):
        with begin_run(tmp_path / name, **FACTS) as run:
            for done, shard in enumerate(order, 1):
                run.add_summary(shard, parts[shard])
                assert run.measured() == set(order[:done])
                assert run.summary().num_inputs == 3 * done
        assert [file.name[:13] for file in shard_files(run.path)] == ["000000-000004"]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_summaries_are_added_up_within_segments(run, monkeypatch):
    monkeypatch.setattr("headcount.store.run._SEGMENT", 2)
    for shard in range(5):
        run.add_summary(shard, Summary.of(table(3, seed=shard)))
    assert [file.name[:13] for file in shard_files(run.path)] == ["000000-000001", "000002-000003", "000004-000004"]
    assert run.summary().num_inputs == 15
    assert run.measured() == set(range(5))


def test_summaries_interrupted_while_they_are_added_up(tmp_path, monkeypatch):
    parts = [Summary.of(table(3, seed=seed)) for seed in range(3)]
    with begin_run(tmp_path / "whole", **FACTS) as run:
        for shard, part in enumerate(parts):
            run.add_summary(shard, part)
    expected = contents(run.path)
    for number, stopped in enumerate((("headcount.store.run.write_shard", 2), ("pathlib.Path.unlink", 1))):
        with begin_run(tmp_path / str(number), **FACTS) as run:
            run.add_summary(0, parts[0])
            with monkeypatch.context() as patch:
                stop_at_call(patch, *stopped)
                with pytest.raises(KeyboardInterrupt):
                    run.add_summary(1, parts[1])
            assert len(shard_files(run.path)) == 2 + number
            assert open_run(run.path).summary().num_inputs == 6
            assert run.measured() == {0, 1}
        with begin_run(tmp_path / str(number), **FACTS) as run:
            assert len(shard_files(run.path)) == 1
            run.add_summary(2, parts[2])
        assert contents(run.path) == expected


def stop_at_call(patch, name, number):
    """Make the ``number``-th call of a function the moment at which the process is interrupted."""
    import pydoc

    function, calls = pydoc.locate(name), []

    def call(*args, **options):
        calls.append(args)
        if len(calls) == number:
            raise KeyboardInterrupt
        return function(*args, **options)

    patch.setattr(name, call)


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


DAMAGE = [lambda b: b[:-1], lambda b: b"", lambda b: b[:40] + b"\xff" + b[41:], lambda b: b + b"x"]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("folder", ["scores", "outcomes", "summaries"])
def test_a_damaged_file_is_named_and_made_anew(tmp_path, damage, folder):
    with begin_run(tmp_path / "run", **FACTS) as run:
        run.add_scores(0, table(3))
        run.add_summary(0, Summary.of(table(3)))
        run.add_outcomes(["a"], [0, 1, 2], outcomes("a"))
    whole = contents(run.path)
    (file,) = (run.path / folder).iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert run.damaged() == [file]
    read = {"scores": lambda run: run.scores().load(), "outcomes": Run.outcomes, "summaries": Run.summary}[folder]
    with pytest.raises(RunError, match=rf"{file.name}.*makes this part anew"):
        read(open_run(run.path))
    with ExitStack() as stack:
        with pytest.warns(UserWarning, match=rf"{file.name}.* is made anew"):
            run = stack.enter_context(begin_run(tmp_path / "run", **FACTS))
        assert not file.exists()
        assert run.damaged() == []
        run.add_scores(0, table(3))
        run.add_outcomes(["a"], [0, 1, 2], outcomes("a"))
        if folder == "summaries":
            run.add_summary(0, Summary.of(table(3)))
    assert contents(run.path) == whole


def test_one_flipped_bit_of_one_score_is_found_by_reading_that_score(run):
    run.add_scores(0, table(3))
    (file,) = shard_files(run.path)
    content = bytearray(file.read_bytes())
    content[-10] ^= 1
    file.write_bytes(content)
    scores = open_run(run.path).scores()
    with pytest.raises(RunError, match=r"the checksum of awft differs"):
        (scores["ahon"].load(), scores["awft"].load())


def test_a_missing_file_is_a_part_not_done(run):
    run.add_scores(0, table(3))
    run.add_scores(1, table(2))
    shard_files(run.path)[0].unlink()
    assert open_run(run.path).measured() == {1}
    assert open_run(run.path).scores().sizes["example"] == 2


def test_shards_of_different_scores_do_not_pass_for_one_table(run):
    run.add_scores(0, table(3))
    run.add_scores(1, table(3)[["awft"]])
    with pytest.raises(RunError, match=r"000001-.*holds other scores"):
        open_run(run.path).scores()


def test_a_whole_file_that_is_not_what_it_says_is_named(run):
    write_shard(run.path / "scores", "000000", "safetensors", b"\x02\0\0\0\0\0\0\0{}")
    write_shard(run.path / "summaries", "000000-000000", "safetensors", b"\x02\0\0\0\0\0\0\0{}")
    write_shard(run.path / "outcomes", "000000-a", "parquet", b"PAR1")
    for read in (Run.scores, Run.summary, Run.outcomes):
        with pytest.raises(RunError, match=r"000000-.* is not what was written"):
            read(open_run(run.path))


def test_what_an_interruption_left_is_cleared_away(tmp_path):
    with begin_run(tmp_path / "run", **FACTS) as run:
        run.add_scores(0, table(3))
    before = contents(run.path)
    for name in (
        ".run.json.77.part",
        "scores/.000001-0123456789abcdef.safetensors.77.part",
        "scores/000001.safetensors",
    ):
        (run.path / name).write_bytes(b"half")
    (run.path / ".report.html.77.part").write_bytes(b"another process writes the page just now")
    assert open_run(run.path).scores().sizes["example"] == 3
    with begin_run(tmp_path / "run", **FACTS):
        pass
    (run.path / ".report.html.77.part").unlink()
    assert contents(run.path) == before


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match=r"is not empty.*-o"), begin_run(tmp_path, **FACTS):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_empty_folder_and_a_missing_one_are_used(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "stopped at once").mkdir()
    (tmp_path / "stopped at once/.lock").touch()
    (tmp_path / "stopped at once/.run.json.77.part").write_text("{")
    for name in ("empty", "a/b/c", "stopped at once"):
        with begin_run(tmp_path / name, **FACTS):
            pass
        assert is_run(tmp_path / name)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in ("file", "file/run"):
        with pytest.raises(RunError, match=r"cannot be written"), begin_run(tmp_path / path, **FACTS):
            pass
    with pytest.raises(RunError, match=r"file"):
        open_run(tmp_path / "file")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with (
            pytest.raises(RunError, match=r"cannot be written \(Permission denied\).*-o"),
            begin_run(tmp_path / "a", **FACTS),
        ):
            pass
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunError, match=r"cannot be written \(Permission denied\)"), begin_run(tmp_path / "b", **FACTS):
        pass


def test_no_run_says_how_to_make_one(tmp_path):
    assert not is_run(tmp_path)
    with pytest.raises(RunError, match=r"holds no run.*headcount measure"):
        open_run(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"format": 2}', '{"format": 2, "model": []}', "\udcff"])
def test_a_damaged_manifest_is_an_error(run, content):
    (run.path / "run.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(RunError, match=r"run.json"):
        open_run(run.path)


@pytest.mark.parametrize(
    ("version", "advice"), [(1, "make the run again"), (3, "Upgrade"), ("2", "Upgrade"), (None, "Upgrade")]
)
def test_another_format_is_refused(run, version, advice):
    manifest = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps(manifest | {"format": version}))
    with pytest.raises(RunError, match=rf"format {version}, this headcount reads format 2\. .*{advice}"):
        open_run(run.path)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"model": {"name": "other", "fingerprint": "cd"}}, "model name is 'some/model' there and 'other' here"),
        ({"data": {"tasks": ["sums", "spell"]}}, r"data tasks is \['sums'\] there and \['sums', 'spell'\] here"),
        ({"settings": {"seed": 1}}, "settings seed is 0 there and 1 here"),
    ],
)
def test_a_run_of_something_else_is_refused(tmp_path, changed, named):
    with begin_run(tmp_path / "run", **FACTS) as run:
        run.add_scores(0, table(3))
    before = contents(run.path)
    with pytest.raises(RunError, match=named), begin_run(tmp_path / "run", **FACTS | changed):
        pass
    assert contents(run.path) == before


def test_the_same_model_under_another_name_continues_a_run(tmp_path):
    with begin_run(tmp_path / "run", **FACTS):
        pass
    with begin_run(tmp_path / "run", **FACTS | {"model": {"name": "./here", "fingerprint": "ab"}}) as run:
        assert run.manifest["model"]["name"] == "some/model"


def test_continuing_keeps_when_the_run_was_begun_and_tells_of_other_versions(tmp_path):
    with begin_run(tmp_path / "run", **FACTS, command="first") as run:
        run.update(created="2000-01-01", environment=run.manifest["environment"] | {"torch": "0.1"})
    with (
        pytest.warns(UserWarning, match=r"begun with other versions \(torch is '0.1' there"),
        begin_run(tmp_path / "run", **FACTS, command="second") as run,
    ):
        assert (run.manifest["created"], run.manifest["command"]) == ("2000-01-01", "first")
    history = [json.loads(line) for line in (run.path / "history.jsonl").read_text().splitlines()]
    assert [entry["command"] for entry in history] == ["first", "second"]
    assert history[1]["environment"]["torch"] != "0.1"


def full_disk(monkeypatch, name):
    """Writing out a file whose name begins so fails at the last moment, as on a full disk."""
    replace = Path.replace

    def fail(self, target):
        if Path(target).name.startswith(name):
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


def test_file_and_folder_are_synced_before_a_write_counts_as_done(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, Path.replace

    def sync(descriptor):
        done.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", lambda self, to: done.append(("rename", to.name)) or replace(self, to))
    write_atomically(tmp_path / "new/page.html", b"x")
    part = f".page.html.{os.getpid()}.part"
    assert done == [("sync", tmp_path.name), ("sync", part), ("rename", "page.html"), ("sync", "new")]


def test_a_failed_shard_leaves_the_run_readable(run, monkeypatch):
    whole = table(4)
    run.add_scores(0, whole.isel(example=[0, 1]))
    full_disk(monkeypatch, "000001-")
    with pytest.raises(RunError, match=r"No space"):
        run.add_scores(1, whole.isel(example=[2, 3]))
    monkeypatch.undo()
    assert [file for file in run.path.rglob("*") if file.suffix == ".part"] == []
    again = open_run(run.path)
    again.add_scores(1, whole.isel(example=[2, 3]))
    xr.testing.assert_identical(open_run(run.path).scores().load(), whole)


def test_failing_to_replace_thresholds_keeps_the_old_ones(run, monkeypatch):
    first = xr.Dataset({"awft": ("share", [0.1])}, coords={"share": [0.1]})
    run.set_thresholds(first)
    full_disk(monkeypatch, "run.json")
    with pytest.raises(RunError, match=r"No space"):
        run.set_thresholds(first * 2)
    monkeypatch.undo()
    xr.testing.assert_identical(run.thresholds(), first)
    xr.testing.assert_identical(open_run(run.path).thresholds(), first)


@pytest.mark.parametrize("thresholds", [[], {}, 3, {"share": [0.1], "scores": {"awft": [1, 2]}}])
def test_damaged_thresholds_are_an_error(run, thresholds):
    manifest = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps(manifest | {"thresholds": thresholds}))
    with pytest.raises(RunError, match=r"run.json.* cannot be read.*headcount thresholds"):
        open_run(run.path).thresholds()


def test_a_shard_written_again_replaces_the_old_one(run):
    run.add_scores(0, table(3))
    run.add_scores(0, table(3, seed=1))
    assert len(shard_files(run.path)) == 1
    xr.testing.assert_identical(open_run(run.path).scores().load(), table(3, seed=1))
