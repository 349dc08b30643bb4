import re
from pathlib import Path

import pytest
import yaml

from headcount.study.folder import open_study
from tests.runs import contents


@pytest.fixture
def small(fields):
    """A small study's file."""
    Path("small.yaml").write_text(
        yaml.safe_dump({name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()})
    )
    return "small.yaml"


def test_a_study_from_a_file_end_to_end(headcount, small, fields):
    code, out, error = headcount("study", small)
    assert code == 0, error
    assert "on sums, acc" in out
    assert re.search(r"ahon_ln +(≥ )?\d+\.\d% \[", out)
    assert out.endswith("Study: runs/small\n")
    before = contents(Path("runs/small"))
    code, again, error = headcount("study", small)
    assert (code, again) == (0, out)
    assert "(done before)" in error
    assert contents(Path("runs/small")) == before
    code, out, _ = headcount("status", "runs/small")
    assert code == 0
    assert "70 of 70 nothing" in " ".join(out.split())
    run = next(iter(open_study("runs/small").runs().values()))
    assert headcount("report", run.path)[0] == 0


def test_a_dry_run_counts_and_starts_nothing(headcount, small, monkeypatch):
    monkeypatch.setattr("headcount.study.running.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    code, out, error = headcount("study", small, "--dry-run")
    assert code == 0, error
    # 1 pass to measure, 1 untouched, 3 scores × 2 shares.
    assert re.search(r"\b8\b", out)
    assert "160 forward passes" in " ".join(out.split())
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"modles": []}, "modles: there is no such field. Did you mean models?"),
        ({"data": ["sumss"]}, "data[0].tasks: 'sumss' is none of"),
        ({"models": ["./nowhere"]}, "models[0].model: There is no model folder './nowhere'"),
        ({"scores": ["honorr"]}, "scores: Unknown score 'honorr'"),
    ],
)
def test_wrong_fields_are_exit_code_2(headcount, fields, change, named):
    Path("small.yaml").write_text(yaml.safe_dump(fields | change))
    code, _, error = headcount("study", "small.yaml")
    assert code == 2
    assert named in " ".join(error.split())
    assert "Traceback" not in error
    assert not Path("runs").exists()


def test_no_such_study_or_engine(headcount, small):
    code, _, error = headcount("study", "nothing.yaml")
    assert code == 2
    assert "demo, fineweb_edu, paper" in " ".join(error.split())
    assert "Unknown engine 'dask'" in headcount("study", small, "--engine", "dask")[2]


def test_a_study_that_was_not_begun_shows_what_is_left(headcount, small, fields, subjects, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("headcount.study.running.ask_run", stop)
    assert headcount("study", small)[0] == 130
    code, out, _ = headcount("status", "runs/small")
    assert code == 0
    assert "70 answers" in out
