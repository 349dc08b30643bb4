"""``headcount lm-eval``: lm-eval's command line, with headcount as one of its models."""

import json
import logging
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

#: lm-eval's command line in a fresh process, with headcount's entry point in the registry as it will be found there.
_FOUND = """
import sys
from importlib.metadata import EntryPoint
from lm_eval.api.registry import model_registry
found = EntryPoint("headcount", sys.argv.pop(1), "lm_eval.models")
model_registry.register("headcount", target=found)
from lm_eval.__main__ import cli_evaluate
cli_evaluate()
"""


@pytest.fixture(autouse=True)
def _logging(monkeypatch):
    """lm-eval's command line logs to what is the standard error when it first runs, and that is another one in each test."""
    logger = logging.getLogger("lm_eval")
    for name, value in {"handlers": [], "level": logger.level, "propagate": logger.propagate}.items():
        monkeypatch.setattr(logger, name, value)


@pytest.fixture
def asked(checkpoint, tmp_path):
    """The arguments that ask lm-eval for a task of our own, with its results in a folder of that name."""
    from tests.runs import write_tasks

    write_tasks(tmp_path / "tasks", 6)

    def asked(model, results, *more):
        return [
            "run", "--model", model, "--model_args", f"pretrained={checkpoint()}", "--tasks", "sums", "--device", "cpu",
            "--include_path", str(tmp_path / "tasks"), "--output_path", str(tmp_path / results), "--log_samples", *more,
        ]  # fmt: skip

    return asked


def written(folder):
    (results,) = folder.rglob("results_*.json")
    (samples,) = folder.rglob("samples_sums_*.jsonl")
    return json.loads(results.read_text()), [json.loads(line) for line in samples.read_text().splitlines()]


def assert_same(ours, theirs):
    """But for what names the model, when and how long."""
    (ours, our_samples), (theirs, their_samples) = ours, theirs
    for part in ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples"):
        assert ours[part].keys() == theirs[part].keys()
    assert ours["results"] == theirs["results"]
    assert ours["n-samples"] == theirs["n-samples"]
    for mine, other in zip(our_samples, their_samples, strict=True):
        for part in ("doc", "target", "doc_hash", "prompt_hash", "acc", "acc_norm"):
            assert mine[part] == other[part]
        for ((nats, greedy),), ((expected, greedily),) in zip(mine["resps"], other["resps"], strict=True):
            assert float(nats) == pytest.approx(float(expected), abs=1e-4)
            assert greedy == greedily


def test_its_results_file_is_lm_evals_own_by_either_command(headcount, asked, tmp_path):
    code, _, error = headcount("lm-eval", *asked("headcount", "ours"))
    assert code == 0, error
    code, _, error = headcount("lm-eval", *asked("hf", "theirs", "--batch_size", "1"))
    assert code == 0, error
    ours, theirs = written(tmp_path / "ours"), written(tmp_path / "theirs")
    assert_same(ours, theirs)
    assert ours[0]["config"]["model"] == "headcount"

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    entry_point = project["entry-points"]["lm_eval.models"]["headcount"]
    command = [sys.executable, "-c", _FOUND, entry_point, *asked("headcount", "found")]
    subprocess.run(command, check=True, capture_output=True)
    assert_same(written(tmp_path / "found"), ours)


@pytest.mark.demo
def test_data_come_from_the_package_where_there_is_no_hub(headcount, checkpoint):
    model_args = f"pretrained={checkpoint(vocab_size=50_000)},policy=random:0.5"
    code, out, error = headcount(
        "lm-eval", "run", "--model", "headcount", "--model_args", model_args, "--tasks", "arc_easy", "--limit", "2"
    )
    assert code == 0, error
    assert "|arc_easy|" in out


def test_what_headcount_refuses_is_one_sentence(refused, asked):
    arguments = asked("headcount", "ours")
    arguments[4] += ",policy=nonsense@1"
    assert "nonsense" in refused("lm-eval", *arguments)


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]])
def test_help_is_lm_evals(headcount, arguments):
    code, out, _ = headcount("lm-eval", *arguments)
    assert code == 0
    assert "usage: lm-eval" in out
