"""What every command has in common."""

import os
import re

import pytest

from headcount.scores import all_scores
from headcount.store import open_run


@pytest.mark.parametrize(("given", "then"), [(None, "passive"), ("active", "active")])
def test_threads_sleep_where_they_wait_unless_the_user_says_otherwise(headcount, monkeypatch, given, then):
    monkeypatch.delenv("OMP_WAIT_POLICY")
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    headcount("--version")
    assert os.environ["OMP_WAIT_POLICY"] == then


def test_scores_lists_every_id_once(headcount):
    code, out, _ = headcount("scores")
    assert code == 0
    facts, aliases = re.split(r"\n\s*\n", out.rstrip())  # too wide for 80 columns: aliases stand below, by id again
    for listed in (facts, aliases):
        assert re.findall(r"^ (\S+)", listed, re.MULTILINE) == ["id", *(score.id for score in all_scores())]
    assert {alias for score in all_scores() for alias in score.aliases} <= set(re.findall(r"\w+", aliases))


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["scores"],
        ["measure"],
        ["thresholds"],
        ["evaluate"],
        ["report"],
        ["demo"],
        ["study"],
        ["status"],
        ["export"],
    ],
)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help(headcount, command, option):
    code, out, _ = headcount(*command, option)
    assert code == 0
    assert "Usage: " in out
    assert " ".join(command) in out


def test_version(headcount):
    assert headcount("--version")[1].startswith("headcount 0.")


def test_the_default_folder_tells_model_and_data(headcount, checkpoint, text):
    _, out, _ = headcount("measure", checkpoint("my model 3"), "--texts", text)
    assert re.search(r"^Run: runs/my-model-3-text-\d{8}-\d{6}$", out, re.MULTILINE)


@pytest.mark.parametrize("name", ["[bold]x[/]", "ünï 模型", "a'b\"c d", "-dash", "$(touch pwned)", "x" * 200])
def test_names_are_taken_as_they_are(headcount, checkpoint, text, tmp_path, name):
    code, out, _ = headcount("measure", checkpoint(name), "--texts", text, "-o", f"run {name}")
    assert code == 0
    assert out.endswith(f"Run: run {name}\n")
    assert open_run(f"run {name}").manifest.model.name == str(tmp_path / name)
    code, out, _ = headcount("report", f"run {name}")
    assert (code, out) == (0, f"Page: run {name}/report.html\n")


@pytest.mark.parametrize("arguments", [["mesure"], ["measure"], ["report"], ["measure", "demo", "--frobnicate"]])
def test_wrong_usage_is_exit_code_2(headcount, arguments):
    code, _, error = headcount(*arguments)
    assert code == 2
    assert "Usage: " in error
    assert "Traceback" not in error
