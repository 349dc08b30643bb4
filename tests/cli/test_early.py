import json
from pathlib import Path

import pytest

from headcount.store import continue_run, open_run
from headcount.study.analysing import read_tables
from tests.runs import contents, write_errors, write_tasks


@pytest.fixture
def many(checkpoint, tmp_path):
    """A command line that evaluates a tiny model on 150 questions."""
    write_tasks(tmp_path / "many", questions=150)
    return "evaluate", checkpoint(), "--task", "sums", "--include-path", tmp_path / "many", "--offline"


def test_a_policy_is_asked_until_it_is_decided(headcount, refused, many):
    command = (*many, "-p", "random:0.005", "--until-decided", "--margin", 0.3, "-o", "run")
    code, out, error = headcount(*command)
    assert code == 0, error
    said = " ".join(out.split())
    assert "Within 30 points of the untouched model? Asked until known at 95%" in said
    assert "within 64 of 150" in said
    assert "random ≥ 0.5%" in said
    assert json.loads(Path("run/run.json").read_text())["until_decided"] == {
        "metric": "acc", "margin": 0.3, "confidence": 0.95, "questions_a_look": 64,
    }  # fmt: skip
    assert len(open_run("run").outcomes()) == 2 * 64
    before = contents(Path("run"))
    code, again, error = headcount(*command)
    assert (code, again) == (0, out), error
    assert contents(Path("run")) == before
    status = " ".join(headcount("status", "run")[1].split())
    assert "128 of 300 nothing" in status
    assert "random:0.005 stopped after 64 of 150 questions" in status

    assert headcount("report", "run")[0] == 0
    page = Path("run/report.html").read_text()
    assert "Within 30 points of the untouched model?" in page
    assert "64 of 150 questions" in page
    assert "95% interval" not in page.split("</style>")[1].split("<script")[0]

    assert "asked in another way" in refused(*many, "-p", "random:0.005", "-o", "run")
    assert "'margin': 0.1" in refused(*command[:-2], "--margin", 0.1, "-o", "run")
    Path("run/report.html").unlink()
    assert contents(Path("run")) == before


def test_the_removable_share_is_searched_for(headcount, many):
    search = ("--search", "ahon_ln", "--search", "random", "--resolution", 0.2, "--margin", 0.05)
    code, out, error = headcount(*many, *search, "--largest-share", 0.6, "-o", "run")
    assert code == 0, error
    assert "look 1 for 2 removable shares" in error
    assert "Heads that can be off within 5 points" in out
    run = open_run("run")
    assert run.manifest.measured.scores == ["ahon_ln"]  # random heads need no scores
    ends = run.manifest.facts()["searched"]["scores"]
    assert list(ends) == ["ahon_ln", "random"]
    shown = [line.split() for line in out.splitlines() if line.startswith(("ahon_ln", "random"))][-2:]
    for line, score in zip(shown, ends, strict=True):
        last = ["≥", "60.0%"] if ends[score]["beyond"] is None else [f"{100 * ends[score]['within']:.1f}%", "to"]
        assert line[:3] == [score, *last]
    # Another run gives the thresholds.
    elsewhere = (*many, *search, "--largest-share", 0.6, "--thresholds-from", "run", "-o", "elsewhere")
    assert headcount(*elsewhere)[0] == 0
    assert open_run("elsewhere").manifest.searched == run.manifest.searched
    assert not open_run("elsewhere").has_scores


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--margin", 0.1], "--margin and --confidence go with --until-decided"),
        (["--confidence", 0.9], "--margin and --confidence go with --until-decided"),
        (["-p", "random:0.1", "--until-decided", "--resolution", 0.1], "--resolution go with --search"),
        (["--until-decided"], "Say under which policies"),
        (["--search", "ahn_ln"], "Unknown score 'ahn_ln'. Did you mean ahon_ln"),
        (["--search", "random", "--margin", 5], "margin is a fall of accuracy as a fraction of 1"),
        (["--search", "random", "--confidence", 95], "confidence"),
        (["--search", "random", "--resolution", 0], "A search takes"),
        (["--search", "random", "--pruned", "folder"], "Pruned checkpoints are asked every question"),
        (["--search", "random", "--metric", "f1"], "Unknown metric 'f1' to decide by"),
    ],
)
def test_options_that_make_no_sense_are_refused(refused, many, arguments, named):
    assert named in refused(*many, *arguments, "-o", "run")


def test_errors_are_decided_and_searched_as_their_complement(headcount, refused, checkpoint, tmp_path):
    write_errors(tmp_path / "errors", questions=24)
    command = ("evaluate", checkpoint(), "--task", "errs", "--include-path", tmp_path / "errors", "--offline")
    early = ("-p", "random:0.005", "-p", "random:0.6", "--until-decided", "--margin", 0.02)
    search = ("--search", "random", "--largest-share", 0.6, "--resolution", 0.3)
    decided, found, said = {}, {}, {}
    for metric in ("acc", "err", "f1"):
        code, said[metric], error = headcount(*command, *early, *search, "--metric", metric, "-o", metric)
        assert code == 0, error
        run = open_run(metric)
        decided[metric], found[metric] = read_tables(run).decided, run.manifest.facts()["searched"]
    assert decided["acc"]["verdict"].notna().all()
    assert decided["acc"]["change"].abs().max() > 0
    for metric in ("err", "f1"):  # f1 is better when higher where a task does not say otherwise
        assert found[metric] == found["acc"]
        columns = ["policy", "share_realised", "num_questions", "verdict", "decided_after"]
        assert decided[metric][columns].equals(decided["acc"][columns])
        changes = decided[metric][["change", "change_low", "change_high"]].to_numpy()
        assert changes == pytest.approx(-decided["acc"][["change", "change_high", "change_low"]].to_numpy())
    assert "At most 2 points above the untouched model?" in " ".join(said["err"].split())
    assert headcount("report", "err")[0] == 0
    assert "At most 2 points above the untouched model?" in Path("err/report.html").read_text()

    # A rule of which nobody says any more which way its metric is better, as in an older run.
    with continue_run("err") as run:
        run.update(until_decided=run.manifest.until_decided.facts() | {"metric": "unsaid", "margin": 0.01})
    code, listed, error = headcount("status", "err")
    assert code == 0, error
    assert f"{len(open_run('err').outcomes()):,} of " in " ".join(listed.split())
    assert "Not decided: " in listed
    assert "Whether a higher or a lower unsaid is better is not known" in " ".join(listed.split())
    for reads in ("report", "analyse"):
        assert "a lower unsaid is better is not known" in refused(reads, "err")
