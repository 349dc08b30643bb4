import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

import headcount as hc
from headcount.analysis import accuracy_table, removable_table
from headcount.errors import InputError
from tests.report.conftest import make_outcomes


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def line(ax, label):
    return next(drawn for drawn in ax.lines if drawn.get_label() == label)


def test_lines_are_the_accuracy_table_in_percent():
    outcomes = make_outcomes()
    ax = hc.plot.accuracy(outcomes)
    table = accuracy_table(outcomes)
    of_score = table[table["curve"] == "lthon_ln"]
    drawn = line(ax, "lthon_ln")
    np.testing.assert_allclose(drawn.get_xdata(), [0, *(100 * of_score["share_realised"])])
    base = table["accuracy"][0]
    np.testing.assert_allclose(drawn.get_ydata(), [100 * base, *(100 * (base + of_score["change"]))])
    assert line(ax, "random").get_color() != drawn.get_color()


def test_relative_starts_at_100():
    ax = hc.plot.accuracy(make_outcomes(), relative=True, scores=["awft"], bands=[])
    assert line(ax, "awft").get_ydata()[0] == pytest.approx(100)
    assert [drawn.get_label() for drawn in ax.lines if not drawn.get_label().startswith("_")] == ["awft"]
    assert not ax.collections


def test_bands_are_the_best_score_and_random_unless_named():
    outcomes = make_outcomes()
    assert len(hc.plot.accuracy(outcomes).collections) == 2
    assert len(hc.plot.accuracy(outcomes, bands=["awft", "random", "ahon_ln"]).collections) == 3


def test_bands_of_few_questions_stay_between_0_and_100_percent():
    outcomes = make_outcomes(questions=5, loss={"ahon_ln": 0.0, "random": 9.0})
    for band in hc.plot.accuracy(outcomes).collections:
        heights = band.get_paths()[0].vertices[:, 1]
        assert heights.min() >= 0
        assert heights.max() <= 100
    assert accuracy_table(outcomes)["change_low"].min() + accuracy_table(outcomes)["accuracy"][0] < 0  # unless bounded


def test_given_axes_are_drawn_on_and_returned():
    ax = plt.figure().subplots()
    assert hc.plot.accuracy(make_outcomes(), ax=ax) is ax
    assert hc.plot.removable(make_outcomes(), ax=plt.figure().subplots()).figure is not ax.figure


def test_removable_points_are_the_table():
    outcomes = make_outcomes()
    ax = hc.plot.removable(outcomes)
    table = removable_table(outcomes).set_index("curve")["removable_share"]
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels[-1] == "random"
    assert ax.get_ylim() == (len(labels) - 0.5, -0.5)  # every row is whole
    dots = [drawn for drawn in ax.lines if drawn.get_marker() == "o"]
    for at, (label, dot) in enumerate(zip(labels, dots, strict=True)):
        np.testing.assert_allclose(dot.get_xydata(), [[100 * table[label], at]])


def test_what_cannot_be_drawn_is_named():
    outcomes = make_outcomes()
    with pytest.raises(InputError, match=r"'ahon' was not evaluated\. Did you mean ahon_ln"):
        hc.plot.accuracy(outcomes, scores=["ahon"])
    with pytest.raises(InputError, match="Unknown metric 'f1'"):
        hc.plot.removable(outcomes, metric="f1")
    with pytest.raises(InputError, match="no question right"):
        hc.plot.accuracy(outcomes.assign(acc=0.0), relative=True)
    with pytest.raises(InputError, match="Only the baseline"):
        hc.plot.accuracy(outcomes[outcomes["policy"] == "baseline"])


def test_settings_of_the_reader_are_left_alone():
    with plt.rc_context({"font.size": 31.0, "lines.linewidth": 9.0}):
        hc.plot.accuracy(make_outcomes())
        assert plt.rcParams["font.size"] == 31.0


def test_outcomes_are_not_changed():
    outcomes = make_outcomes()
    before = outcomes.copy(deep=True)
    hc.plot.accuracy(outcomes)
    pd.testing.assert_frame_equal(outcomes, before)
