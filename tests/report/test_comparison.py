"""Several runs beside one another, and what the page makes of one."""

import numpy as np
import pandas as pd
import pytest

from headcount.analysis import distances, score_agreement
from headcount.published import published_curves
from headcount.report import render_page
from headcount.report.published import paper_ranks
from headcount.report.results import Report
from headcount.report.sections import agreement, comparison, layers, paper, ranks, result_tables, stability
from tests.report.conftest import make_outcomes, make_results, make_scores, manifest, results_of
from tests.report.test_page import text_of

IDS = ["ahon_ln", "awft"]


def run(name="model", task="arc_easy", fingerprint="aa", seed=0, **changes):
    facts = manifest(name, task)
    facts["model"]["fingerprint"] = fingerprint
    given = {"scores": make_scores(IDS, seed), "outcomes": make_outcomes(task=task)}
    return results_of(manifest=facts, **(given | changes))


@pytest.fixture(scope="module")
def runs():
    return [run(), run(task="piqa", seed=1), run("tuned", fingerprint="bb", seed=2)]


def test_runs_are_called_by_what_tells_them_apart():
    assert Report([run("a"), run("b")]).labels == ["a", "b"]
    assert Report([run(task="x"), run(task="y")]).labels == ["x", "y"]
    assert Report([run("a", "x"), run("a", "y"), run("b", "y")]).labels == ["a, x", "a, y", "b, y"]
    assert Report([run(), run()]).labels == ["model, arc_easy (1)", "model, arc_easy (2)"]


def test_benchmarks_are_runs_of_the_same_weights(runs):
    assert list(Report(runs).benchmarks.values()) == runs[:2]
    nameless = [results_of(manifest={}, scores=make_scores(IDS)) for _ in range(2)]
    assert (
        list(Report(nameless).benchmarks.values()) == nameless[:1]
    )  # two that do not say which model they are of may be of two


def test_stability_is_of_the_first_runs_model(runs):
    data = stability.data(Report(runs))
    assert data["benchmarks"] == ["arc_easy", "piqa"]
    at = data["shares"].index(0.15)
    line = data["lines"][0]
    cuts = [runs[k].cuts["ahon_ln"].sel(share=0.15).item() for k in (0, 1)]
    assert line["threshold"][at] == pytest.approx(cuts, rel=1e-5)
    assert line["y"][at] == pytest.approx([cut / np.mean(cuts) for cut in cuts], rel=1e-4)
    assert stability.data(Report(runs[:1])) is None


def test_comparison_sets_quantiles_and_relative_accuracy_beside_one_another(runs):
    apart = distances({"a": runs[0].scores, "b": runs[1].scores, "c": runs[2].scores})
    data = comparison.data(Report(runs))
    assert data["runs"] == ["model, arc_easy", "model, piqa", "tuned, arc_easy"]
    panel = next(panel for panel in data["panels"] if panel["score"] == "awft")
    assert panel["runs"] == [0, 1, 2]
    assert float(panel["note"]) == pytest.approx(apart.loc[apart["score"] == "awft", "distance"].max(), rel=5e-3)
    for k, values in enumerate(panel["values"]):
        assert values[50] == pytest.approx(float(runs[k].scores["awft"].median()), rel=1e-2)
        assert values[100] == pytest.approx(float(runs[k].scores["awft"].max()), rel=1e-5)
    curve = data["curves"]["random"][1]
    assert curve["y"][0] == 100.0
    assert comparison.data(Report(runs[:1])) is None


def test_agreement_and_layers_are_the_analysis(runs):
    data = agreement.data(Report(runs))
    expected = score_agreement(runs[0].scores, runs[0].cuts)
    np.testing.assert_allclose(data["kinds"]["precision"][2], expected["precision"][2], atol=1e-3)
    profile = layers.data(Report(runs))
    assert profile["layers"] == list(range(30))
    panel = profile["panels"][0]
    assert panel["q50"][3] == pytest.approx(float(runs[0].scores["ahon_ln"][:, 3].median()), rel=1e-5)
    values = runs[0].scores["ahon_ln"].to_numpy()[:, 3]
    assert panel["often"][2][3] == pytest.approx((values < runs[0].cuts["ahon_ln"][2].item()).mean(), rel=1e-3)


def test_ranks_by_task_stand_beside_all_questions():
    rows = [make_outcomes(task="a", questions=400), make_outcomes(task="b", questions=100)]
    both = run(outcomes=pd.concat(rows, ignore_index=True))
    data = ranks.data(Report([both]))
    assert data["tasks"] == ["all questions", "a", "b"]
    assert sorted(data["ranks"][0]) == [1, 2, 3, 4]
    scores = [line["score"] for line in data["scores"]]
    assert sorted(scores) == ["ahon_ln", "awft", "lthon_ln", "random"]
    assert data["paper"][scores.index("ahon_ln")] == pytest.approx(mean_rank("ahon_ln", scores), rel=1e-3)


def mean_rank(score, among):
    """By a plain loop: over the paper's models, the mean of 1 + how many of these scores have a larger area."""
    ranks = []
    for _, of_model in published_curves().groupby("model"):
        areas = of_model.set_index("curve")["normalised_area"]
        ranks.append(1 + sum(areas[other] > areas[score] for other in among))
    return sum(ranks) / len(ranks)


def test_paper_ranks_are_among_the_scores_given():
    assert paper_ranks(["ahon_ln"]).tolist() == [1.0]
    everything = sorted(published_curves()["curve"].unique())
    assert paper_ranks(everything)["ahon_ln"] == pytest.approx(1.93, abs=0.005)  # the paper's
    assert np.isnan(paper_ranks(["ahon_ln", "fhon"])["fhon"])


def test_the_papers_models_are_all_there(runs):
    data = paper.data(Report(runs))
    assert len(data["models"]) == 14
    scores = [line["score"] for line in data["scores"]]
    assert data["own"][scores.index("aeqd")] is None
    own = runs[0].removable.set_index("curve").loc["ahon_ln"]
    shown = data["own"][scores.index("ahon_ln")]
    found = [shown[name] for name in ("share", "low", "high")]
    assert found == pytest.approx([100 * own[name] for name in ("removable_share", "low", "high")], abs=1e-3)
    assert scores[-1] == "random"


def test_tables_of_several_runs(runs):
    tables = {table.id: table for table in result_tables(Report(runs))}
    assert list(tables) == [
        "removable", "accuracy", "divergence", "inactive-heads", "thresholds", "agreement", "stability",
        "stability-heads", "ranks", "layers", "comparison-removable", "distances", "paper", "definitions",
    ]  # fmt: skip
    expected = distances(
        {"model, arc_easy": runs[0].scores, "model, piqa": runs[1].scores, "tuned, arc_easy": runs[2].scores}
    )
    assert tables["distances"].frame["distance"].tolist() == pytest.approx(expected["distance"].tolist())
    assert len(tables["agreement"].rows()) == 2  # read as a matrix, saved in full
    assert len(tables["agreement"].frame) == 2 * 2 * len(runs[0].cuts["share"])
    paper = tables["paper"].rows()
    assert paper[0][0] == "model"
    assert paper[-1][0] == "mean"
    assert paper[-1][2:5] == ("4.6%", "11.0%", "8.3%")  # the paper's averages of awft, ahon_ln, lthon_ln
    assert paper[-1][6] == "12.2%"


def test_the_page_of_one_run_says_how_to_compare(runs):
    text = text_of(render_page(runs[:1]))
    assert "This takes two benchmarks." in text
    assert "headcount report RUN OTHER_RUN" in text


def test_runs_without_a_score_in_common_are_still_a_page():
    first = make_results(outcomes=None, scores=make_scores(["ahon"]))
    other = make_results(outcomes=None, scores=make_scores(["awft"]))
    assert "These runs have no score in common." in text_of(render_page([first, other]))
