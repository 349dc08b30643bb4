import numpy as np
import pytest
from matplotlib import pyplot as plt

import headcount as hc
from headcount.analysis import layer_profile, score_agreement, threshold_stability
from headcount.errors import InputError
from headcount.published import published_table
from headcount.report.published import paper_ranks
from tests.report.conftest import LAYERS, make_outcomes, make_scores


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def tables():
    return {"one": make_scores(["ahon_ln", "awft", "aeqd"]), "other": make_scores(["ahon_ln", "awft", "aeqd"], seed=1)}


@pytest.mark.parametrize("measure", ["iou", "precision"])
def test_agreement_is_the_matrix(tables, measure):
    ax = hc.plot.agreement(tables["one"], share=0.2, measure=measure)
    drawn = ax.images[0].get_array()
    expected = score_agreement(tables["one"], hc.thresholds(tables["one"], [0.2]))[measure].to_numpy()[0]
    off = ~np.eye(3, dtype=bool)
    np.testing.assert_allclose(drawn[off], expected[off])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["ahon_ln", "awft", "aeqd"]
    assert {text.get_text() for text in ax.texts} == {f"{value:.2f}"[1:] for value in expected[off]}


def test_stability_is_relative_to_the_mean(tables):
    ax = hc.plot.stability(tables, share=0.15)
    cuts = threshold_stability({name: hc.thresholds(table, [0.15]) for name, table in tables.items()})
    row = cuts[cuts["score"] == "awft"].iloc[0]
    line = next(line for line in ax.lines if line.get_label() == "awft")
    mean = (row["one"] + row["other"]) / 2
    np.testing.assert_allclose(line.get_ydata(), [row["one"] / mean, row["other"] / mean])


def test_layers_are_the_profile(tables):
    axes = hc.plot.layers(tables["one"], scores=["awft"], columns=1)
    rows = layer_profile(tables["one"][["awft"]])
    np.testing.assert_allclose(axes[0, 0].lines[0].get_ydata(), rows["q50"])
    assert len(axes[0, 0].lines[0].get_xdata()) == LAYERS


def test_comparison_has_a_line_a_table(tables):
    axes = hc.plot.comparison(tables, columns=2)
    assert axes.shape == (2, 2)
    ax = axes[0, 0]
    assert ax.get_title() == "ahon_ln"
    for line, table in zip(ax.lines, tables.values(), strict=True):
        values = table["ahon_ln"].to_numpy()
        assert line.get_xdata()[50] == pytest.approx(np.nanmedian(values), rel=1e-2)
    assert [text.get_text() for text in axes[0, 0].figure.legends[0].get_texts()] == ["one", "other"]


def test_ranks_of_scores_that_lose_more_are_higher():
    ax = hc.plot.ranks(make_outcomes(questions=2000, loss={"random": 3.0, "ahon_ln": 0.2, "awft": 1.0}))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["ahon_ln", "awft", "random"]
    own = [line.get_xdata()[0] for line in ax.lines[1:]]
    assert own == [1, 2, 3]
    np.testing.assert_allclose(ax.lines[0].get_xdata(), paper_ranks(["ahon_ln", "awft", "random"]))


def test_paper_shows_its_models_and_this_run():
    ax = hc.plot.paper(make_outcomes(), name="mine")
    labels = [label.get_text() for label in ax.get_xticklabels()]
    at = labels.index("awft")
    grey = next(line for line in ax.lines if len(line.get_xdata()) == 14 and abs(np.mean(line.get_xdata()) - at) < 0.01)
    table = published_table()
    np.testing.assert_allclose(grey.get_ydata(), 100 * table["awft"][:14])
    assert len(ax.get_legend().get_texts()) == 2


def test_what_cannot_be_drawn_is_named(tables):
    with pytest.raises(InputError, match="Unknown measure 'recall'"):
        hc.plot.agreement(tables["one"], measure="recall")
    with pytest.raises(InputError, match="at least two"):
        hc.plot.comparison({"one": tables["one"]})
    with pytest.raises(InputError, match="at least two"):
        hc.plot.stability({"one": tables["one"]})
    with pytest.raises(InputError, match="'fhon' was not measured here"):
        hc.plot.layers(tables["one"], scores=["fhon"])
    with pytest.raises(InputError, match="Only the baseline"):
        hc.plot.ranks(make_outcomes()[lambda rows: rows["policy"] == "baseline"])
