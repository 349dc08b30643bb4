import pandas as pd
import pytest
from typer.testing import CliRunner

import headcount.cli.evaluate
import headcount.cli.published  # noqa: F401  (adds the command)
from headcount.cli.app import app
from headcount.errors import InputError


def run(*arguments):
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, ["published", *arguments])


def test_table_2_is_printed_and_written(tmp_path):
    result = run("-o", str(tmp_path / "table.csv"))
    assert result.exit_code == 0
    mean = next(line for line in result.output.splitlines() if line.startswith("mean"))
    assert mean.split() == ["mean", "4.61", "12.18", "11.03", "8.34", "1.18"]
    assert len(pd.read_csv(tmp_path / "table.csv")) == 15


def test_a_model_a_score_and_a_curve():
    of_model = run("--model", "Llama-3.1-8B").output
    assert "meta-llama/Llama-3.1-8B, mmlu: 65.2% untouched" in of_model
    assert next(line for line in of_model.splitlines() if line.startswith("ahon_ln")).split() == [
        "ahon_ln", "17.11%", "14.29%", "63.9%", "1",
    ]  # fmt: skip
    assert len(run("--score", "HONOR").output.splitlines()) == 2 + 14
    curve = run("--model", "Llama-3.1-8B", "--score", "HONOR").output.splitlines()
    assert curve[-1].split() == ["30%", "0.7188", "27.21%", "56.6%", "−8.6", "25.6%"]


def test_what_was_not_published_is_refused():
    result = run("--model", "gpt2")
    assert isinstance(result.exception, InputError)
    with pytest.raises(InputError, match="No curve of fhon was published"):
        raise run("--score", "fhon").exception


def test_policies_take_published_thresholds_of_the_model_or_of_the_one_named():
    evaluate = ["evaluate", "demo", "--task", "arc_easy", "--policy", "ahon_ln:published:0.10"]
    runner = CliRunner()
    assert "no published results for 'demo'" in str(runner.invoke(app, evaluate).exception)
    named = runner.invoke(app, [*evaluate, "--published-model", "Llama-3.2-1B"])
    assert "no published results for 'Llama-3.2-1B'" in str(named.exception)
