"""``headcount demo``."""

import pytest

from headcount.store import open_run
from headcount.thresholding import SHARES


@pytest.mark.demo
def test_heads_are_shown_before_answers_and_answers_as_divergence_before_accuracy(headcount):
    code, out, error = headcount("demo", "--questions", 2, "-o", "run")
    assert code == 0, error
    parts = [
        "measured in",
        "Inactive by",
        "How far answers move",
        "Accuracy with heads off",
        "--full",
        "report.html",
    ]
    assert sorted(parts, key=out.index) == parts
    run = open_run("run")
    assert run.policies() == ["baseline"] + [
        f"{id}:{share}" for id in ("ahon_ln", "awft", "random") for share in (0.1, 0.2)
    ]
    assert len(run.scores_measured() or ()) == 16
    assert len(run.outcomes()) == 7 * 2
    assert run.thresholds()["share"].values.tolist() == sorted(SHARES)
    assert (run.path / "report.html").stat().st_size > 1_000_000


@pytest.mark.demo
def test_full_asks_at_more_shares_and_a_number_of_questions_goes_before_its_own(headcount, monkeypatch):
    asked = {}

    def ask(run, subject, asking, announce):
        asked["shares"] = sorted({policy.share for policy in asking.policies})
        asked["questions"] = subject.facts().num_questions
        raise KeyboardInterrupt

    monkeypatch.setattr("headcount.study.evaluating.ask", ask)
    code, _, error = headcount("demo", "--full", "--questions", 3, "-o", "run")
    assert code == 130
    assert "What was finished is kept in 'run'" in error
    assert asked == {"shares": [0.05, 0.1, 0.2, 0.3], "questions": 3}


@pytest.mark.demo
def test_preparing_leaves_no_run(headcount, tmp_path):
    code, out, _ = headcount("demo", "--prepare")
    assert (code, out) == (0, "")
    assert not list(tmp_path.iterdir())
