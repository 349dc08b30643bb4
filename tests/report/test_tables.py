import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from headcount.report import print_tables, read_results, render_page, sections
from headcount.report.figures import write_figures
from headcount.report.overview import print_overview
from headcount.report.results import Report
from headcount.report.sections import SECTIONS, result_tables
from headcount.report.tables import latex_text, num, table
from headcount.scores import select_scores
from headcount.store import begin_run
from headcount.study.analysing import analyse_runs, read_tables
from tests.report.conftest import HOSTILE, make_outcomes, make_results, make_scores, manifest
from tests.report.test_page import packed, text_of

MEASURED = ["accuracy", "inactive-heads", "thresholds", "agreement", "layers", "definitions"]


def made(frame):
    return table(
        "t", "A title, 50%", "", frame, [("Name", lambda r: r.name, False), ("x %", lambda r: f"{r.x:.1f}", True)]
    )


def test_csv_holds_every_digit_and_comes_back():
    frame = pd.DataFrame({"name": ["a", 'b"c, d\ne'], "x": [1 / 3, np.nan]})
    text = made(frame).csv()
    back = pd.read_csv(io.StringIO(text))
    assert back["x"][0] == pytest.approx(1 / 3, rel=1e-8)
    assert np.isnan(back["x"][1])
    assert back["name"][1] == 'b"c, d\ne'


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x", "\tx", "\nx"])
def test_csv_text_is_never_a_formula(name):
    text = made(pd.DataFrame({"name": [name], "x": [-1.5]})).csv()
    assert pd.read_csv(io.StringIO(text))["name"][0] == f"'{name}"
    assert text.endswith("-1.5\r\n")  # numbers stay numbers
    headings = next(csv.reader(io.StringIO(made(pd.DataFrame({"name": ["a"], "x": [1.0], name: ["b"]})).csv())))
    assert headings[2] == f"'{name}"  # a benchmark's name, say


def test_latex_by_hand():
    text = made(pd.DataFrame({"name": ["ahon_ln"], "x": [0.25]})).latex()
    assert text == (
        "\\begin{table}[t]\n\\centering\n\\caption{A title, 50\\%}\n\\label{tab:t}\n"
        "\\resizebox{\\ifdim\\width>\\linewidth \\linewidth\\else\\width\\fi}{!}{%\n\\begin{tabular}{lr}\n\\toprule\n"
        "Name & x \\% \\\\\n\\midrule\nahon\\_ln & 0.2 \\\\\n\\bottomrule\n\\end{tabular}}\n\\end{table}\n"
    )


def test_latex_of_hostile_text_is_text():
    assert latex_text(r"\input{x}$&#^~_%") == (
        r"\textbackslash{}input\{x\}\$\&\#\textasciicircum{}\textasciitilde{}\_\%"
    )
    text = made(pd.DataFrame({"name": [HOSTILE], "x": [1.0]})).latex()
    assert len(text) < 1000
    assert "\u202e" not in text
    assert text.count("\n") == 13  # a line a row


def test_tables_of_a_run():
    tables = {made.id: made for made in result_tables(Report([make_results()]))}
    assert list(tables) == [
        "removable", "accuracy", "divergence", "inactive-heads", "thresholds", "agreement", "ranks", "layers", "paper",
        "definitions",
    ]  # fmt: skip
    assert tables["accuracy"].rows()[0][:4] == ("baseline", "–", "0.0%", "53.5%")
    assert tables["removable"].rows()[-1][0] == "random"
    cut = make_results().cuts["ahon_ln"].sel(share=0.1).item()
    row = next(row for row in tables["thresholds"].rows() if row[0] == "ahon_ln")
    assert row[:2] == ("ahon_ln", "low")
    assert float(row[4]) == pytest.approx(cut, rel=5e-3)  # shares 0, 5, 10
    assert len(tables["definitions"].rows()) == len(select_scores("all"))


def test_tables_of_a_baseline_alone():
    alone = make_results(outcomes=make_outcomes().query("policy == 'baseline'"))
    assert [made.id for made in result_tables(Report([alone]))] == MEASURED


def numbers(frame, columns):
    """Every digit, by curve or policy."""
    return frame.set_index(columns[0])[columns[1:]].sort_index().to_numpy(dtype=float)


@pytest.mark.parametrize("drawn", [False, True])  # right and wrong, whose bounds are counted, and what has drawn ones
def test_page_analysis_and_terminal_read_the_same_tables(tmp_path, drawn):
    outcomes = make_outcomes(questions=60)
    if drawn:
        outcomes["f1"] = 0.8 * outcomes.pop("acc") + 0.1 * np.sin(outcomes["doc_id"])
    facts = manifest()
    with begin_run(tmp_path / "run", **{part: facts[part] for part in ("model", "data", "settings")}) as run:
        run.add_scores(0, make_scores(["ahon_ln", "awft"]))
        for policy, rows in outcomes.groupby("policy", sort=False):
            run.add_outcomes([str(policy)], range(len(rows)), rows)
    page = {made.id: made for made in result_tables(Report([read_results(run)]))}
    analysed = analyse_runs([run], published=False)
    for name, columns in (
        (
            "accuracy",
            ["policy", "accuracy", "change", "change_low", "change_high", "change_bound", "confidence_within"],
        ),
        ("removable", ["curve", "removable_share", "low", "high", "share_shown"]),
        ("divergence", ["policy", "kl", "kl_low", "kl_high", "gold_loglikelihood", "gold_loglikelihood_low"]),
    ):
        np.testing.assert_array_equal(numbers(page[name].frame, columns), numbers(analysed[name], columns))
    shares = ["score", "share", "always", "sometimes", "never", "groups_always"]
    np.testing.assert_array_equal(numbers(page["inactive-heads"].frame, shares), numbers(analysed["inactive"], shares))
    # What a reader sees of them: `evaluate` in a terminal, the page and `analyse`.
    console = Console(file=io.StringIO(), width=100)
    answers = read_tables(run).answers
    print_tables(console, answers.accuracy, answers.removable, answers.judged)
    print_overview(console, analysed, share=0.1)
    said = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    for curve, share, _, _ in page["removable"].rows():
        assert len([line for line in said if line.startswith(f"{curve} {share} ")]) == 2
    for policy, asked, realised, accuracy, change, *_ in page["accuracy"].rows():
        assert f"{policy} {asked} {realised} {accuracy} {change}" in said


def test_a_sections_table_is_on_the_page_and_written_for_papers(monkeypatch, tmp_path):
    before = SECTIONS["methods"].tables

    def tables(report):
        yield from before(report)
        yield table("count", "Runs", "", pd.DataFrame({"runs": [len(report.runs)]}), [num("Runs", "runs")])

    monkeypatch.setattr(SECTIONS["methods"], "tables", tables)
    results = make_results(scores=None)
    assert json.loads(packed(render_page([results]), "tables"))["count"] == "runs\r\n1\r\n"
    files = {file.name for file in write_figures([results], tmp_path)}
    assert {"count.csv", "count.tex"} <= files


def test_a_section_is_the_files_of_its_name():
    folder = Path(sections.__file__).parent
    stems = {file.name.partition(".")[0] for file in folder.iterdir() if file.is_file()}
    assert stems == {*SECTIONS, "section", "__init__"}
    for name, module in SECTIONS.items():
        assert module.HEADING
        assert (folder / f"{name}.html.j2").is_file()
        assert (folder / f"{name}.js").is_file() <= hasattr(module, "data")


def test_random_heads_are_no_score_whichever_layers_are_left_alone():
    outcomes = make_outcomes(loss={"ahon_ln": 0.4, "random": 3.0})
    outcomes.loc[outcomes["curve"] != "", "curve"] += " except layer 0"
    results = make_results(scores=None, outcomes=outcomes)
    assert results.removable["curve"].tolist() == ["ahon_ln except layer 0", "random except layer 0"]
    said = text_of(render_page([results]))
    assert "accuracy by ahon_ln except layer 0 (95% interval" in said
    assert "; random heads: " in said
    assert "best of" not in said


def test_one_curve_of_random_heads_is_said_beside_the_best_score():
    outcomes = make_outcomes(loss={"ahon_ln": 0.4, "random": 3.0})
    others = outcomes.loc[outcomes["curve"] == "random"].copy()
    others["curve"] += " except layer 0"
    others["policy"] += " except layer 0"
    results = make_results(scores=None, outcomes=pd.concat([outcomes, others], ignore_index=True))
    assert len(results.removable) == 3
    assert re.search(r"; random heads: (at least )?[\d.]+%\.", text_of(render_page([results])))
