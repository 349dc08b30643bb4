"""Runs of MLP neurons and of whole MLPs, from the command line."""

import pandas as pd
import pytest

from headcount.store import open_run
from headcount.units import KINDS


@pytest.fixture
def texts(tmp_path):
    file = tmp_path / "texts.jsonl"
    lines = ["one", "two and three", "one more of them", "and another one"] * 2
    file.write_text("".join(f'{{"text": "{line} {number}"}}\n' for number, line in enumerate(lines)))
    return file


def test_neurons_are_measured_thresholded_and_reported(headcount, checkpoint, texts):
    code, out, _ = headcount("measure", checkpoint(), "--texts", texts, "--unit", "neuron", "-o", "run")
    assert (code, out) == (0, "Measured 12 scores of 288 MLP neurons on 8 inputs.\nRun: run\n")
    run = open_run("run")
    assert (run.manifest.unit, run.manifest.format, run.settings.summaries) == ("neuron", 5, True)
    assert not run.has_scores
    assert {of_score.parts for of_score in run.summary().scores.values()} == {"layer"}

    code, out, _ = headcount("thresholds", "run")
    assert code == 0
    assert "griffin" in out
    code, out, _ = headcount("analyse", "run", "-o", "tables")
    assert code == 0
    assert "288 neurons at 10%" in out
    extremes = pd.read_csv("tables/extremes.csv")
    moments = run.summary().heads["mean"].sel(score="fhon")
    largest = extremes.loc[(extremes["score"] == "fhon") & (extremes["end"] == "largest")].iloc[0]
    assert largest["mean"] == pytest.approx(float(moments.max()))
    assert float(moments.sel(layer=largest["layer"], head=largest["unit"])) == float(moments.max())
    counts = pd.read_csv("tables/inactive.csv").query("score == 'fhon' and share == 0.1").iloc[0]
    assert counts["always"] + counts["sometimes"] + counts["never"] == 288
    assert counts["mean_inactive"] == pytest.approx(28.8, abs=2)

    assert headcount("status", "run")[0] == 0
    assert headcount("export", "run", "-o", "out")[0] == 0
    assert len(pd.read_parquet("out/neurons.parquet")) == 12 * 288
    assert headcount("report", "run")[:2] == (0, "Page: run/report.html\n")


def test_policies_of_neurons_are_evaluated_by_what_the_run_measured(headcount, checkpoint, own, refused):
    policies = "-p", "fhon/token:0.3", "-p", "griffin:0.2", "-p", "random:0.2"
    code, out, error = headcount("evaluate", checkpoint(), *own(), "--unit", "neuron", *policies, "-o", "run")
    assert code == 0, error
    assert "neurons off" in out
    run = open_run("run")
    share = run.outcomes().groupby("policy")["share_off"].mean()
    assert share["fhon/token:0.3"] == pytest.approx(0.3, abs=0.1)
    assert share["griffin:0.2"] == pytest.approx(0.2, abs=0.1)
    code, _, error = headcount(
        "evaluate", checkpoint(), *own(), "-p", "fhon/token:0.1", "-o", "run"
    )  # of the run's kind
    assert code == 0, error
    assert headcount("report", "run")[0] == 0
    run_again = "evaluate", checkpoint(), *own(), "-o", "run"
    assert "have no awft" in refused(*run_again, "--search", "awft")
    assert "which MLP neurons do not have" in refused(*run_again, "-p", "awft@0.4")
    assert "Calibrations and pruned checkpoints are of heads" in refused(
        *run_again, "-p", "fhon:0.1", "--pruned", "elsewhere"
    )
    said = refused("evaluate", checkpoint(), *own(), "--unit", "head", "-p", "random:0.1", "-o", "run")
    assert "is a run of MLP neurons, not of query heads" in said
    said = refused(
        "evaluate", checkpoint(), *own(), "--unit", "mlp", "-p", "fhon:0.1", "--thresholds-from", "run", "-o", "other"
    )
    assert "measured MLP neurons, and this run is of layers' MLPs" in said


@pytest.mark.parametrize("unit", ["mlp", "group", "attention"])
def test_other_kinds_are_measured_and_evaluated(headcount, checkpoint, own, unit):
    code, out, error = headcount("measure", checkpoint(), *own(), "--unit", unit, "-o", "run")
    assert code == 0, error
    kind, run = KINDS[unit], open_run("run")
    assert f"of {run.manifest.units.num_units} {kind.plural} on" in out
    assert all(of_score.sizes["head"] == run.manifest.units.most_units for of_score in run.scores().values())
    policies = "-p", "ahon:0.4", "-p", "random:0.4"
    code, out, error = headcount("evaluate", checkpoint(), *own(), *policies, "-o", "run")
    assert code == 0, error
    share = open_run("run").outcomes().groupby("policy")["share_off"].mean()
    assert 0 < share["ahon:0.4"] < 1
    assert headcount("report", "run")[0] == 0
    assert headcount("analyse", "run")[0] == 0


def test_what_a_kind_does_not_have_is_refused(headcount, refused, checkpoint, texts):
    measure = "measure", checkpoint(), "--texts", texts, "-o", "run"
    assert "MLP neurons have no awft" in refused(*measure, "--unit", "neuron", "--score", "awft")
    evaluate = "evaluate", checkpoint(), "--task", "sums_a", "--unit", "neuron", "-o", "other"
    assert "puts mean in the place of what is off" in refused(*evaluate, "-p", "fhon+mean:0.1")
    assert "Layers' MLPs have no fhon_ln" in refused(*measure, "--unit", "mlp", "--score", "fhon_ln")
    code, _, error = headcount(*measure, "--unit", "nonsense")
    assert code == 2
    assert "is not one of" in error


def test_a_page_is_of_one_kind(headcount, checkpoint, texts, refused):
    for kind in ("neuron", "head"):
        assert headcount("measure", checkpoint(), "--texts", texts, "--unit", kind, "-o", kind)[0] == 0
    assert "'neuron' is of MLP neurons, 'head' of query heads" in refused("report", "neuron", "head")
