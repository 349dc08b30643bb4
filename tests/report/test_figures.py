import csv
import io
import re
from xml.etree import ElementTree

import pytest
from matplotlib import pyplot as plt

from headcount.errors import InputError
from headcount.report import plot
from headcount.report.figures import write_figures
from headcount.report.plot.paper import TEMPLATES
from tests.report.conftest import HOSTILE, make_outcomes, make_scores, manifest, results_of

DRAWN = ("accuracy", "removable", "ranks", "paper", "distributions", "layers", "agreement", "head-map-ahon_ln")


@pytest.fixture(scope="module")
def results():
    return results_of(manifest=manifest(), scores=make_scores(["ahon_ln"]), outcomes=make_outcomes())


@pytest.fixture(scope="module")
def files(results, tmp_path_factory):
    return {
        file.name: file.read_bytes()
        for file in write_figures([results], tmp_path_factory.mktemp("figures"), template="icml")
    }


def test_every_figure_in_three_formats_and_every_table_in_two(files):
    assert {name for name in files if name.endswith(("pdf", "svg", "png"))} == {
        f"{name}.{kind}" for name in DRAWN for kind in ("pdf", "svg", "png")
    }
    assert {name.rpartition(".")[0] for name in files if name.endswith(".tex")} == {
        name.rpartition(".")[0] for name in files if name.endswith(".csv")
    }
    assert files["accuracy.pdf"].startswith(b"%PDF")
    assert files["accuracy.png"].startswith(b"\x89PNG")
    assert b"\\toprule" in files["accuracy.tex"]
    rows = list(csv.reader(io.StringIO(files["removable.csv"].decode())))
    assert rows[0][0] == "curve"
    assert len(rows) == 5


def test_same_run_same_bytes(results, files, tmp_path):
    again = {
        file.name: file.read_bytes() for file in write_figures([results], tmp_path / "new" / "folder", template="icml")
    }
    assert [name for name in files if again[name] != files[name]] == []


def test_names_from_strangers_are_drawn_as_they_are(tmp_path):
    # Mathematics, markup, the end of an XML comment, a mark of direction, a script that the font lacks, a formula.
    name = '_$\\frac{$<b>-->&"模\u202e\n=1+1'
    runs = [
        results_of(
            manifest=manifest(model, task),
            scores=make_scores([name, "ahon_ln"], seed),
            outcomes=make_outcomes(task=task, loss={name: 0.3, "random": 1.5}),
        )
        for seed, (model, task) in enumerate([(name, name), (name + "2", HOSTILE)])
    ]
    files = {file.name: file for file in write_figures(runs, tmp_path)}
    assert {"accuracy.svg", "paper.svg", "distributions.svg", "comparison.svg", "stability.svg"} <= set(files)
    for file in files.values():
        if file.suffix == ".svg":
            elements = {element.tag.rpartition("}")[2] for element in ElementTree.parse(file).iter()}
            assert elements & {"b", "script"} == set()
        elif file.suffix == ".csv":
            lines = list(csv.reader(io.StringIO(file.read_bytes().decode(), newline="")))
            assert len({len(line) for line in lines}) == 1
            assert not [cell for line in lines for cell in line if cell.startswith(("=", "+", "@"))]
        elif file.suffix == ".tex":
            assert r"\frac" not in file.read_text()
    labels = [text.get_text() for text in plot.accuracy(runs[0].answers.outcomes).get_legend().get_texts()]
    assert labels == [r' _\$\frac{\$<b>-->&"模 =1+1', "random"]
    plt.close("all")


def test_files_do_not_say_when_they_were_made(files):
    for name, content in files.items():
        assert b"CreationDate" not in content, name
        assert not re.search(rb"<dc:date>", content), name


def test_widths_are_the_templates(files, results, tmp_path):
    def width(name):
        return float(re.search(rb'<svg [^>]*width="([\d.]+)pt"', files[name])[1]) / 72

    assert width("accuracy.svg") == pytest.approx(TEMPLATES["icml"].text)
    assert width("removable.svg") == pytest.approx(TEMPLATES["icml"].column)
    with pytest.raises(InputError, match=r"Unknown template 'ICML'\. Did you mean icml"):
        write_figures([results], tmp_path, template="ICML")
    assert not list(tmp_path.iterdir())
