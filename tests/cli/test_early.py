import json
from pathlib import Path

import pytest

from headcount.store import open_run
from tests.runs import contents, write_tasks


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
    assert "Heads that can be zeroed within 5 points" in out
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
