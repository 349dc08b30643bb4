"""Looking at runs and studies runs no code that they name."""

import re

import pytest
import yaml

from headcount.scores import registry
from headcount.store import open_run
from tests.store.parts import forge

OWN = """
import headcount, pathlib

pathlib.Path(__file__).with_suffix(".ran").touch()

@headcount.score("theirs", name="A score of theirs", needs=["value_norm"], inactive_when="high", unit="m", source="s")
def theirs(m):
    return m.value_norm
"""


@pytest.fixture
def theirs(monkeypatch, tmp_path):
    """A file with a score, and how to forget that it ever ran, as in another process."""
    before = {name: dict(getattr(registry, name)) for name in ("_SCORES", "_NAMES", "_FILES")}

    def forget():
        for name, held in before.items():
            monkeypatch.setattr(registry, name, dict(held))
        file.with_suffix(".ran").unlink(missing_ok=True)

    file = tmp_path / "theirs.py"
    file.write_text(OWN)
    forget()
    return file, forget


@pytest.fixture
def study(headcount, checkpoint, text, theirs):
    """A finished study with that score, which nobody here has registered."""
    file, forget = theirs
    fields = {
        "models": [str(checkpoint())],
        "data": [{"texts": str(text), "name": "book"}],
        "scores": ["awft", "theirs"],
    }
    fields |= {"scores_from": [str(file)], "shares": [0, 0.25], "dtype": "float32"}
    (file.parent / "s.yaml").write_text(yaml.safe_dump(fields))
    code, _, error = headcount("study", "s.yaml", "-o", "study")
    assert code == 0, error
    assert file.with_suffix(".ran").exists()
    forget()
    return next((file.parent / "study").rglob("run.json")).parent


LOOKS = {
    "status": [],
    "thresholds": ["--share", "0.25"],
    "analyse": ["-o", "tables"],
    "report": ["-o", "page.html"],
    "figures": ["-o", "figs"],
    "export": ["-o", "out", "-f", "csv"],
}


def test_a_score_of_theirs_is_shown_without_its_file(headcount, study, theirs, tmp_path):
    shown = {}
    for command, options in LOOKS.items():
        code, shown[command], error = headcount(command, study, *options)
        assert (code, error) == (0, ""), command
    for command in ("status", "report", "analyse"):
        assert headcount(command, "study")[0] == 0
    assert headcount("study", "s.yaml", "--dry-run")[0] == 0
    assert not theirs[0].with_suffix(".ran").exists()
    assert re.search(r"^ theirs +> ", shown["thresholds"], re.MULTILINE)
    assert "theirs" in shown["analyse"]
    assert "head-map-theirs.pdf" in {file.name for file in (tmp_path / "figs").iterdir()}
    assert re.search(r"theirs,A score of theirs,,high,m,s", (tmp_path / "figs" / "definitions.csv").read_text())
    assert "theirs" in (tmp_path / "out" / "scores.csv").read_text().splitlines()[0]


def test_a_run_that_does_not_say_what_a_score_is_is_shown_without_its_thresholds(headcount, study):
    run = open_run(study)
    run.update(scores={})
    for command in ("analyse", "report"):
        code, _, error = headcount(command, study)
        assert code == 0
        assert "does not say when theirs is inactive" in error


def test_a_run_that_contradicts_a_known_score_is_refused(refused, study):
    run = open_run(study)
    run.update(scores={"awft": {"name": "x", "inactive_when": "low", "unit": "1", "source": "x"}})
    for command in ("analyse", "report", "figures", "thresholds"):
        assert "says that awft is inactive when low; here it is inactive when high" in refused(command, study)
    forge(run.path / "run.json", lambda facts: facts | {"scores": {"awft": {"inactive_when": "sideways"}}})
    assert "run.json" in refused("analyse", study)
