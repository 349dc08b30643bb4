"""Folders of runs: refused, locked, damaged, exported."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import xarray as xr

from headcount.scores import select_scores
from headcount.store import begin_run, open_run
from tests.runs import contents


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("--seed", 1), "seed is 0 there and 1 here"),
        (("--limit", 3), "limit is None there and 3.0 here"),
        (("--dtype", "bfloat16"), "dtype is 'float32' there and 'bfloat16' here"),
    ],
)
def test_a_run_of_something_else_is_refused(headcount, refused, checkpoint, own, change, named):
    command = ("evaluate", checkpoint(), *own(), "-p", "random:0.1", "-o", "run")
    headcount(*command)
    before = contents("run")
    error = refused(*command, *change)
    assert named in error
    assert "-o" in error
    assert contents("run") == before


def test_another_model_in_the_same_run_is_refused(headcount, refused, checkpoint, text):
    headcount("measure", checkpoint(), "--texts", text, "-o", "run")
    other = checkpoint("other", seed=1)
    assert "fingerprint" in refused("measure", other, "--texts", text, "-o", "run")


def test_a_folder_that_holds_something_else(refused, checkpoint, text, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    assert "is not empty" in refused("measure", checkpoint(), "--texts", text, "-o", "mine")
    assert "cannot be written" in refused("measure", checkpoint(), "--texts", text, "-o", text)
    assert "cannot be written" in refused("measure", checkpoint(), "--texts", text, "-o", text / "run")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_run_that_another_process_works_on(headcount, refused, checkpoint, text):
    command = ("measure", checkpoint(), "--texts", text, "-o", "run")
    headcount(*command)
    made = open_run("run").manifest.facts()
    with begin_run("run", model=made["model"], data=made["data"], settings=made["settings"], command="headcount x"):
        assert re.search(r"being worked on by process \d+ on .*headcount x", refused(*command))
        assert "being worked on" in refused("thresholds", "run")
        code, out, _ = headcount("status", "run")
        assert code == 0
        assert re.search(r"Process \d+ on \S+ works on it since \S+: headcount x", out)


@pytest.mark.parametrize("command", ["report", "thresholds", "status", "export"])
def test_a_folder_that_is_no_run(refused, tmp_path, command):
    assert "holds no run" in refused(command, tmp_path)
    assert "holds no run" in refused(command, tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert "file" in refused(command, tmp_path / "file")


@pytest.mark.parametrize("command", ["report", "thresholds", "status", "export", "analyse"])
def test_a_file_is_no_run(refused, text, command):
    assert f"{str(text)!r} holds no run (no run.json)" in refused(command, text)


@pytest.mark.parametrize("command", ["report", "thresholds", "export"])
@pytest.mark.parametrize("manifest", ["", "{", "{}", '{"format": 2, "model": {}}', '{"format": 9, "model": {}}'])
def test_a_run_with_nothing_in_it_or_damaged(refused, tmp_path, command, manifest):
    (tmp_path / "run.json").write_text(manifest)
    assert str(tmp_path) in refused(command, tmp_path)


def test_a_damaged_file_of_a_run_is_named(headcount, refused, checkpoint, text):
    headcount("measure", checkpoint(), "--texts", text, "-o", "run")
    (file,) = Path("run/scores").iterdir()
    whole = contents("run")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert file.name in refused("report", "run")
    code, said, _ = headcount("status", "run", "--check")
    assert code == 1
    assert f"Damaged: {file}" in said
    # Thresholds cannot measure it anew, so they leave it to be found.
    assert str(file) in refused("thresholds", "run")
    assert file.exists()
    code, _, error = headcount("measure", checkpoint(), "--texts", text, "-o", "run")
    assert code == 0
    assert f"Note: '{file}' was cut off or altered" in error
    assert contents("run") == whole
    assert "Every file is whole." in headcount("status", "run", "--check")[1]


def test_a_check_says_what_an_earlier_format_cannot_tell(headcount, checkpoint, text):
    headcount("measure", checkpoint(), "--texts", text, "-o", "run")
    facts = json.loads(Path("run/run.json").read_text())
    early = {"format": 2, "created": facts["created"]["at"]}
    kept = {name: value for name, value in facts.items() if name not in (*early, "files", "checksum")}
    Path("run/run.json").write_text(json.dumps(early | kept))
    code, said, _ = headcount("status", "run", "--check")
    assert code == 0
    assert "Every shard is whole." in said
    assert "cannot be told" in said
    assert headcount("measure", checkpoint(), "--texts", text, "-o", "run")[0] == 0
    assert "Every file is whole." in headcount("status", "run", "--check")[1]


def test_a_name_that_is_too_long(refused, checkpoint, text):
    line = refused("measure", checkpoint(), "--texts", text, "-o", "x" * 300)
    assert "cannot be used: File name too long" in line


def test_runs_are_exported(headcount, refused, checkpoint, own, text):
    headcount("measure", checkpoint(), *own(), "--score", "awft", "--score", "ahon", "-o", "run")
    headcount("evaluate", checkpoint(), *own(), "-p", "awft:0.3", "-o", "run")
    scores, outcomes = open_run("run").scores(), open_run("run").outcomes()
    code, out, _ = headcount("export", "run")
    assert code == 0
    assert out.split() == [f"run/export/{name}.parquet" for name in ("scores", "thresholds", "outcomes", "metrics")]
    long = pd.read_parquet("run/export/scores.parquet")
    assert long.columns.tolist() == ["example", "num_tokens", "layer", "head", "awft", "ahon"]
    assert len(long) == scores["awft"].size
    row = long[(long["example"] == 3) & (long["layer"] == 1) & (long["head"] == 2)]
    assert row["ahon"].item() == scores["ahon"].sel(example=3, layer=1, head=2).item()
    assert len(pd.read_parquet("run/export/outcomes.parquet")) == 12
    assert headcount("export", "run", "--format", "csv", "-o", "tables")[0] == 0
    assert len(pd.read_csv("tables/scores.csv")) == len(long)
    assert pd.read_csv("tables/metrics.csv")["policy"].unique().tolist() == ["baseline", "awft:0.3"]
    assert headcount("export", "run", "-f", "netcdf", "-o", "arrays")[0] == 0
    with xr.open_dataset("arrays/scores.nc") as found:
        assert (found["awft"] == scores["awft"]).all()
    with xr.open_dataset("arrays/outcomes.nc") as found:
        first = outcomes[(outcomes["policy"] == "awft:0.3") & (outcomes["doc_id"] == 4)]
        assert found["acc"].sel(policy="awft:0.3").values[4] == first["acc"].item()
        assert found["doc_id"].values.tolist() == list(range(6))
    assert "Unknown format 'xls'" in refused("export", "run", "-f", "xls")
    assert "cannot be written" in refused("export", "run", "-o", text)

    headcount("measure", checkpoint(), "--texts", text, "--summaries", "-o", "summarised")
    assert headcount("export", "summarised", "-f", "csv")[1].split() == ["summarised/export/heads.csv"]
    assert len(pd.read_csv("summarised/export/heads.csv")) == len(select_scores("all")) * 24


def test_a_page_that_cannot_be_written(headcount, refused, checkpoint, text, tmp_path):
    headcount("measure", checkpoint(), "--texts", text, "-o", "run")
    assert "cannot be written" in refused("report", "run", "-o", text / "page.html")
    assert "cannot be written" in refused("report", "run", "-o", tmp_path)


def test_a_full_disk(headcount, refused, checkpoint, text, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        assert "No space left" in refused("measure", checkpoint(), "--texts", text, "-o", "run")
    assert headcount("measure", checkpoint(), "--texts", text, "-o", "run")[0] == 0
