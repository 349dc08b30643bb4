from pathlib import Path

import pytest

from headcount.store import begin_run, open_run
from tests.report.conftest import make_outcomes, manifest


@pytest.fixture
def run(tmp_path):
    return kept(tmp_path, make_outcomes(questions=30))


def kept(tmp_path, outcomes):
    facts = manifest()
    facts["data"]["num_questions"] = 30
    with begin_run(tmp_path / "run", **{part: facts[part] for part in ("model", "data", "settings")}) as made:
        for policy, rows in outcomes.groupby("policy", sort=False):
            made.add_outcomes([str(policy)], range(len(rows)), rows)
    return made.path


def test_figures_of_a_run(headcount, run):
    code, out, _ = headcount("figures", run, "-o", "figs")
    files = sorted(file.name for file in Path("figs").iterdir())
    assert (code, out) == (0, f"{len(files)} files in figs\n")
    assert {"accuracy.pdf", "accuracy.tex", "accuracy.csv", "paper.svg", "removable.png"} <= set(files)


@pytest.fixture
def unsaid(tmp_path):
    """A run with errors under a name of which nobody says which way it is better."""
    outcomes = make_outcomes(questions=30)
    return kept(tmp_path, outcomes.assign(unsaid=1 - outcomes.pop("acc")))


def test_which_way_a_metric_is_better_is_said_to_whoever_reads_a_run(headcount, unsaid):
    said = "--metric", "unsaid", "--lower-is-better"
    for options in ((), said):
        assert headcount("report", unsaid, *options, "-o", "page.html")[0] == 0
        page = Path("page.html").read_text(encoding="utf-8")
        assert ("lower unsaid is better is not known" in page) == (not options)
        assert ("with arc_easy unsaid at most 1 point higher" in page) == bool(options)
        assert headcount("figures", unsaid, *options, "-o", f"figures{len(options)}")[0] == 0
        files = {file.name for file in Path(f"figures{len(options)}").iterdir()}
        assert ("removable.svg" in files) == bool(options)
        assert "paper.svg" not in files
    assert "line 1 point above the untouched" in page


def test_what_cannot_be_drawn_is_said(refused, run, tmp_path):
    assert "Unknown template 'nature'. Known: acl, iclr, icml, ieee, neurips." in refused(
        "figures", run, "--template", "nature"
    )
    assert "holds no run" in refused("figures", tmp_path)
    assert "cannot be written" in refused("figures", run, "-o", run / "run.json")


def test_a_run_shows_itself_in_a_notebook(run):
    shown = open_run(run)._repr_html_()
    assert "<th>model</th><td>SmolLM2-135M-Instruct</td>" in shown
    assert "ahon_ln:0.05" in shown
