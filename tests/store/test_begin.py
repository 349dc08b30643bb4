"""Runs that are made, continued, mended or refused."""

import json
import os
import warnings
from contextlib import ExitStack
from pathlib import Path

import pytest

from headcount.errors import RunError
from headcount.store import Run, begin_run, is_run, open_run
from headcount.store.files import write_shard
from headcount.summaries import Summary
from tests.runs import contents
from tests.store.parts import FACTS, forge, outcomes, shard_files, table

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
        "scores/.000001-0123456789abcdef.safetensors.0123456789abcdef.part",
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
        patch.setattr(os, "open", refuse)
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
    ("version", "advice"),
    [(1, "make it again"), (6, "Upgrade"), ("2", "Upgrade"), (None, "Upgrade"), (True, "Upgrade")],
)
def test_another_format_is_refused(run, version, advice):
    forge(run.path / "run.json", lambda facts: facts | {"format": version})
    with pytest.raises(RunError, match=rf"format {version}, this headcount reads format 5\. .*{advice}"):
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
        assert run.manifest.model.name == "some/model"


def test_a_run_knows_its_batches_and_is_told_of_others(tmp_path):
    with begin_run(tmp_path / "run", **FACTS, batch_tokens=2048) as run:
        subject = run.manifest.subject
    with warnings.catch_warnings(), begin_run(tmp_path / "run", **FACTS, batch_tokens=2048) as run:
        assert run.manifest.batch_tokens == 2048
    with (
        pytest.warns(UserWarning, match=r"begun with batches of 2048 tokens, not 512: .* --batch-tokens 2048"),
        begin_run(tmp_path / "run", **FACTS, batch_tokens=512) as run,
    ):
        assert (run.manifest.batch_tokens, run.manifest.subject) == (2048, subject)


def test_continuing_keeps_when_the_run_was_begun_and_tells_of_other_versions(tmp_path):
    with begin_run(tmp_path / "run", **FACTS, command="first") as run:
        run.update(created="2000-01-01", environment=run.manifest.environment | {"torch": "0.1"})
    with (
        pytest.warns(UserWarning, match=r"begun with other versions \(torch is '0.1' there"),
        begin_run(tmp_path / "run", **FACTS, command="second") as run,
    ):
        assert (run.manifest.created, run.manifest.command) == ("2000-01-01", "first")
    history = [json.loads(line) for line in (run.path / "history.jsonl").read_text().splitlines()]
    assert [entry["command"] for entry in history] == ["first", "second"]
    assert history[1]["environment"]["torch"] != "0.1"
