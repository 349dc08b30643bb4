import json
import re

import pytest

import headcount as hc


@pytest.fixture
def texts(tmp_path):
    lines = ["The cat sat quietly.", "On the mat, all day long.", "Water boils at a hundred degrees.", "So it does!"]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return "--texts", "texts.jsonl"


def test_what_it_takes_is_said_before_and_what_it_holds_after(headcount, checkpoint, texts, tmp_path):
    chosen = ("--num-texts", "3", "--max-length", "20", "--gradients", "-o", "c.safetensors")
    command = ("calibrate", checkpoint(), *texts, *chosen)
    code, out, error = headcount(*command, "--batch-tokens", "30", "--memory", "0.001", "--seed", "4")
    assert code == 0, error
    file = tmp_path / "c.safetensors"
    size = f"{file.stat().st_size / 1e3:.3g} kB"
    assert f"3 texts, 60 tokens: a file of {said(out)}, at most about" in out
    assert abs(said(out, number=True) / file.stat().st_size - 1) < 0.05
    assert re.search(r"of memory beside the model, and about [\d.e-]+ seconds on this machine \(", out)
    assert "Calibrated 24 heads in 3 layers of " in out
    assert (
        " on 3 texts, 60 tokens: means, covariances, sensitivities, gradients, the first token of each text apart."
        in out
    )
    found = hc.Calibration.load(file)
    assert f"Calibration: c.safetensors ({size}, fingerprint {found.fingerprint})" in out
    model, tokenizer = hc.load(str(checkpoint()))
    lines = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
    rows = [tokenizer(line)["input_ids"][:20] for line in lines[:3]]
    same = hc.calibrate(model, rows, gradients=True, batch_tokens=30, seed=4, name=found.facts.model, memory=10**6)
    assert same.fingerprint == found.fingerprint


def said(out, *, number=False):
    """The size of the file that is said beforehand."""
    found = re.search(r"a file of (([\d.]+) kB)", out)
    return 1e3 * float(found[2]) if number else found[1]


def test_means_alone(headcount, checkpoint, texts, tmp_path):
    code, out, error = headcount(
        "calibrate", checkpoint(), *texts, "--no-covariances", "--no-sensitivity", "-o", "means"
    )
    assert code == 0, error
    assert ": means, the first token of each text apart." in out
    assert hc.Calibration.load(tmp_path / "means").layers[0].holds == {"count", "first_count", "mean", "first"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["means", "model", "texts.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-o", "c"), "Say what the model should read: --texts FILE."),
        (("--texts", "nowhere.txt", "-o", "c"), "There is no file 'nowhere.txt'"),
        (("--texts", "texts.jsonl", "-o", "texts.jsonl"), "'texts.jsonl' exists already"),
        (("--texts", "texts.jsonl", "-o", "texts.jsonl/c"), "cannot be written"),
        (
            ("--texts", "texts.jsonl", "-o", "c", "--gradients", "--no-sensitivity"),
            "Gradients are part of the sensitivity",
        ),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(refused, texts, arguments, said):
    assert said in refused("calibrate", "no/model", *arguments)
