import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

from headcount.store import continue_run
from headcount.study.folder import open_study
from headcount.study.spec import Study
from tests.runs import contents

SCORES = ["ahon_ln", "awft", "lthon_hn", "random"]


@pytest.fixture
def small(fields):
    """A small study's file."""
    Path("small.yaml").write_text(
        yaml.safe_dump({name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()})
    )
    return "small.yaml"


def test_a_study_from_a_file_end_to_end(headcount, small, fields):
    models = [{"model": model, "name": "tiny"} for model in fields["models"]]  # a path fits into a line or does not
    Path(small).write_text(yaml.safe_dump(fields | {"models": models}))
    code, out, error = headcount("study", small)
    assert code == 0, error
    said = " ".join(out.split())
    assert "sums: within 1 point" in said
    assert re.search(r"ahon_ln +(≥ )?\d+\.\d% \[", out)
    assert "As published, within 1 point of accuracy, percent" in said
    assert "sums: how far answers move at 10%" in said
    assert "Study: runs/small Tables: runs/small/tables (accuracy, points, removable, divergence," in said
    before = contents(Path("runs/small"))
    code, again, error = headcount("study", small)
    assert (code, again) == (0, out)
    assert "(done before)" in error
    assert contents(Path("runs/small")) == before
    code, out, _ = headcount("status", "runs/small")
    assert code == 0
    status = " ".join(out.split())
    assert "70 of 70 nothing" in status
    assert "Tables: runs/small/tables (accuracy," in status


def test_a_study_is_analysed_and_reported_as_a_whole(headcount, small, fields, subjects):
    text = {"texts": str(subjects / "text.jsonl"), "limit": 4, "name": "prose"}
    Path(small).write_text(yaml.safe_dump(fields | {"shares": [0, 0.1], "data": ["sums", text]}))
    assert headcount("study", small)[0] == 0
    tables = open_study("runs/small").tables()
    written = {file.stem: pd.read_csv(file) for file in Path("runs/small/tables").glob("*.csv")}
    assert written.keys() == tables.keys() >= {"accuracy", "removable", "thresholds", "transfer", "stability"}
    for name, table in tables.items():
        assert written[name].columns.tolist() == table.columns.tolist()
        assert len(written[name]) == len(table) > 0
    assert set(tables["inactive"]["data"]) == {"sums", "prose"}  # as the study calls them
    outcomes = open_study("runs/small").outcomes()
    right = outcomes[outcomes["policy"] == "awft:0.1"]["acc"].mean()
    assert tables["accuracy"].set_index("policy").loc["awft:0.1", "accuracy"] == pytest.approx(right)

    code, out, error = headcount("analyse", "runs/small", "--no-published", "-o", "tables")
    assert code == 0, error
    assert {file.stem for file in Path("tables").iterdir()} == tables.keys() - {"ranks"}
    code, out, error = headcount("report", "runs/small")
    assert code == 0, error
    assert out == "Page: runs/small/report.html\n"
    assert "Runs compared" in Path("runs/small/report.html").read_text()


@pytest.mark.demo
def test_the_demo_study_cut_small(headcount, tiny):  # tiny: one thread, as long as it works
    shipped = Study.read("demo").model_dump(mode="json")
    assert [data["tasks"] for data in shipped["data"]] == [["arc_easy"], ["piqa"], ["hellaswag"]]
    assert shipped["scores"] == ["all"]
    cut = {"data": [data | {"limit": 2} for data in shipped["data"]], "shares": [0, 0.2], "scores": SCORES, "shard": 2}
    Path("demo.yaml").write_text(yaml.safe_dump(shipped | cut))
    code, out, error = headcount("study", "demo.yaml")
    assert code == 0, error
    said = " ".join(out.split())
    for task in ("arc_easy", "piqa", "hellaswag"):
        assert f"{task}: within 1 point" in said
    study = open_study("runs/demo")
    accuracy = study.tables()["accuracy"]
    assert len(accuracy) == 3 * (1 + len(SCORES))  # the untouched model and each score
    zeroed = accuracy[accuracy["policy"] != "baseline"]["share_realised"]
    assert zeroed.between(0.05, 0.45).all()
    assert headcount("report", "runs/demo")[0] == 0


def test_tables_are_made_anew_when_results_change(headcount, small, fields):
    assert headcount("study", small)[0] == 0
    before = contents(Path("runs/small"))
    (Path("runs/small/tables") / "accuracy.parquet").write_bytes(b"cut off")
    assert headcount("study", small)[0] == 0
    assert contents(Path("runs/small")) == before
    Path(small).write_text(yaml.safe_dump(fields | {"shares": [0, 0.1, 0.2, 0.3]}))
    assert headcount("study", small)[0] == 0
    assert {0.1, 0.2, 0.3} <= set(open_study("runs/small").tables()["accuracy"]["share_asked"])


def test_a_study_that_asks_until_it_is_decided(headcount, small, fields):
    early = {"until_decided": {"margin": 0.3}, "search": {"resolution": 0.2}, "scores": ["random"]}
    Path(small).write_text(yaml.safe_dump(fields | early))
    code, out, error = headcount("study", small)
    assert code == 0, error
    said = " ".join(out.split())
    assert "Within 30 points of the untouched model? Asked until known at 95%" in said
    assert "Heads that can be off within 30 points" in said
    tables = open_study("runs/small").tables()
    assert {"decided", "searched"} <= tables.keys()
    assert "accuracy" not in tables  # its intervals do not hold for questions that were stopped by their answers


def test_what_is_running_is_shown(headcount, study):
    run = next(iter(open_study("study").runs().values()))
    assert "running" not in headcount("status", "study")[1]
    with continue_run(run.path, command="headcount study small.yaml"):
        assert "running" in headcount("status", "study")[1]


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

    monkeypatch.setattr("headcount.study.evaluating.ask_run", stop)
    assert headcount("study", small)[0] == 130
    code, out, _ = headcount("status", "runs/small")
    assert code == 0
    assert "70 answers" in out
