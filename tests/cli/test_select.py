import json

import pytest

import headcount as hc
from headcount.removal.selection import Selection


@pytest.fixture
def texts(tmp_path):
    lines = ["The cat sat quietly.", "On the mat, all day long.", "Water boils at a hundred degrees.", "So it does!"]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return "--texts", "texts.jsonl"


def test_select_on_texts_and_prune(headcount, checkpoint, texts, tmp_path):
    code, out, error = headcount("select", checkpoint(), *texts, "--share", "0.25", "--rounds", "2", "-o", "s.json")
    assert code == 0, error
    assert "Selected 6 of 24 query heads (25.0%), chosen on 4 texts" in out
    selection = Selection.load("s.json")
    assert len(selection.heads) == 6
    assert selection.chosen["replaced by"] == "refit"
    code, out, error = headcount("prune", checkpoint(), "--heads", "s.json", "-o", "pruned", *texts)
    assert code == 0, error
    assert (tmp_path / "pruned" / "model.safetensors").is_file()


def test_select_on_a_task_by_a_registered_score(headcount, checkpoint, own):
    command = ("--score", "HONOR", "--unit", "group", "--aggregate", "inactive", "--share", "0.4", "--limit", "3")
    code, out, error = headcount("select", checkpoint(), *own(), *command, "-o", "s.json")
    assert code == 0, error
    assert "Selected 8 of 24" in out
    assert Selection.load("s.json").kind == "group"


def test_select_by_a_calibrated_score(headcount, refused, checkpoint, texts):
    folder = checkpoint()
    model, tokenizer = hc.load(str(folder))
    lines = ["Some text to calibrate on, of a few tokens.", "Another one, which is shorter."]
    hc.calibrate(model, lines, tokenizer=tokenizer, into="c.safetensors")
    command = ("select", folder, *texts, "--score", "devg", "--share", "0.25", "-o", "s.json")
    code, out, error = headcount(*command, "--calibration", "c.safetensors")
    assert code == 0, error
    assert "Selected 6 of 24" in out
    assert Selection.load("s.json").chosen["calibration"] == hc.Calibration.load("c.safetensors").fingerprint
    command = ("select", "no/model", *texts, "--score", "devg", "--share", "0.25", "-o", "t.json")
    assert "devg needs a calibration" in refused(*command)
    assert "'c.json' cannot be read" in refused(*command, "--calibration", "c.json")


def test_budget(headcount, refused, checkpoint, texts, own):
    _, _, *where = own()
    command = ("select", checkpoint(), *texts, *where, "--score", "ahon_ln", "--replace", "zero", "-o", "s.json")
    code, out, error = headcount(*command, "--budget", "99 points of sums", "--step", "0.2", "--share", "0.4")
    assert code == 0, error
    assert "On held-out questions" in out
    assert "shown" in out
    selection = Selection.load("s.json")
    assert selection.chosen["held-out questions"] == 6
    assert len(selection.heads) == 9
    line = refused(*command[:-1], "t.json", "--budget", "0.1 points of sums", "--step", "0.2")
    assert "6 held-out questions" in line


def test_mistakes(refused, checkpoint, texts, tmp_path):
    folder = checkpoint()
    assert "--texts FILE, or --task NAME" in refused("select", folder, "--share", "0.2", "-o", "s.json")
    assert "--share 0.2, or --budget" in refused("select", folder, *texts, "-o", "s.json")
    assert "float16 overflow" in refused(
        "select", folder, *texts, "--share", "0.2", "-o", "s.json", "--dtype", "float16", "--replace", "mean"
    )
    (tmp_path / "s.json").write_text("{}")
    assert "exists already" in refused("select", folder, *texts, "--share", "0.2", "-o", "s.json")
