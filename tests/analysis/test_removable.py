import numpy as np
import pandas as pd
import pytest

from headcount.analysis import last_crossing, removable_table
from headcount.errors import InputError


@pytest.mark.parametrize(
    ("shares", "accuracies", "floor", "expected"),
    [
        # 0.5 → 0.4 between 0.1 and 0.2; 0.45 is halfway
        ([0.0, 0.1, 0.2], [0.5, 0.5, 0.4], 0.45, (0.15, False)),
        # the same points, unsorted
        ([0.2, 0.0, 0.1], [0.4, 0.5, 0.5], 0.45, (0.15, False)),
        # falls, comes back, falls for good: the second crossing, a quarter of the way from 0.2 to 0.3
        ([0.0, 0.1, 0.2, 0.3], [0.5, 0.4, 0.46, 0.42], 0.45, (0.225, False)),
        # never falls below
        ([0.0, 0.1, 0.2], [0.5, 0.5, 0.45], 0.45, (0.2, True)),
        # falls and has come back at the end
        ([0.0, 0.1, 0.2], [0.5, 0.4, 0.5], 0.45, (0.2, True)),
        # below from the start
        ([0.0, 0.1], [0.4, 0.3], 0.45, (0.0, False)),
        ([0.1], [0.3], 0.45, (0.0, False)),
        # two points at one share: a vertical drop
        ([0.0, 0.1, 0.1], [0.5, 0.5, 0.4], 0.45, (0.1, False)),
    ],
)
def test_last_crossing_by_hand(shares, accuracies, floor, expected):
    share, is_lower_bound = last_crossing(shares, accuracies, floor)
    assert share == pytest.approx(expected[0])
    assert is_lower_bound is expected[1]


def test_last_crossing_of_published_points():
    # Llama-3.1-8B on MMLU, percent zeroed and accuracy as published with arXiv 2504.03889; baseline: random at 0.
    ahon_ln = (
        [0.0, 4.8768, 9.4353, 14.6935, 19.6488, 24.4356, 27.2071],
        [65.2542, 65.3539, 65.0976, 64.4994, 63.8798, 61.7149, 56.5945],
    )
    random = (
        [0.0, 5.1861, 10.191, 15.1957, 20.1723, 25.1469, 30.1781],
        [65.1973, 57.9333, 48.2339, 37.751, 30.6438, 26.0647, 24.8326],
    )
    floor = 65.1973 - 1
    # 14.6935 + 4.9553 · (64.4994 − 64.1973) / (64.4994 − 63.8798)
    assert last_crossing(*ahon_ln, floor) == (pytest.approx(17.1096, abs=1e-3), False)
    # 5.1861 · 1 / (65.1973 − 57.9333)
    assert last_crossing(*random, floor) == (pytest.approx(0.7139, abs=1e-3), False)


def test_last_crossing_refuses_what_is_no_curve():
    for shares, accuracies in (([], []), ([0.1], [0.5, 0.4]), ([0.1, np.nan], [0.5, 0.4])):
        with pytest.raises(InputError, match="as many shares as accuracies"):
            last_crossing(shares, accuracies, 0.4)


def outcomes_of(*policies, task="t"):
    """One frame from (policy, score, share_off, right per question)."""
    return pd.concat([
        pd.DataFrame({
            "policy": policy, "curve": score, "share_asked": share, "task": task, "doc_id": np.arange(len(right)),
            "share_off": share, "acc": np.asarray(right, dtype=float),
        })
        for policy, score, share, right in policies
    ])  # fmt: skip


def right(count, of=200):
    return np.arange(of) < count


def test_table_by_hand():
    table = removable_table(
        outcomes_of(
            ("baseline", "", 0.0, right(100)),  # 0.5
            ("ahon_ln:0.10", "ahon_ln", 0.1, right(100)),  # 0.5
            ("ahon_ln:0.20", "ahon_ln", 0.2, right(92)),  # 0.46; −0.01 is a quarter of the way: 0.125
            ("random:0.10", "random", 0.1, right(80)),  # 0.40; −0.01 is a tenth of the way from 0: 0.01
            ("awft@0.8", "awft", 0.24, right(98)),  # 0.49: on the line, not below
            ("fixed", "", 0.3, right(0)),  # no score, no curve
        )
    ).set_index("curve")
    assert list(table.index) == ["ahon_ln", "random", "awft"]
    assert table.loc["ahon_ln", "removable_share"] == pytest.approx(0.125)
    assert table.loc["random", "removable_share"] == pytest.approx(0.01)
    assert table.loc["awft", "removable_share"] == pytest.approx(0.24)
    assert list(table["is_lower_bound"]) == [False, False, True]
    assert list(table["largest_share_measured"]) == pytest.approx([0.2, 0.1, 0.24])
    assert (table["low"] <= table["removable_share"]).all()
    assert (table["removable_share"] <= table["high"]).all()
    assert table.loc["awft", "high"] == table.loc["awft", "largest_share_measured"]


def test_margin_relative_to_the_baseline():
    # baseline 0.5: 10 percent of it are 5 points. 0.5 → 0.46 → 0.40: halfway −0.05 is 1/6 of the way from 0.2 to 0.3.
    outcomes = outcomes_of(
        ("baseline", "", 0.0, right(100)), ("a:0.20", "a", 0.2, right(92)), ("a:0.30", "a", 0.3, right(80))
    )
    table = removable_table(outcomes, margin=0.1, relative=True)
    assert table.loc[0, "removable_share"] == pytest.approx(0.2 + 0.1 / 6)
    assert removable_table(outcomes, margin=0.05).loc[0, "removable_share"] == pytest.approx(0.2 + 0.1 / 6)


def test_share_shown_stops_at_the_first_that_is_not():
    # Of 1,000 questions: 1 lost is shown to be within a point, 8 lost is not, and what comes after it does not count.
    outcomes = outcomes_of(
        ("baseline", "", 0.0, right(500, 1000)),
        ("a:0.30", "a", 0.3, right(500, 1000)),
        ("a:0.10", "a", 0.1, right(499, 1000)),
        ("a:0.20", "a", 0.2, right(492, 1000)),
        ("b:0.10", "b", 0.1, right(400, 1000)),
    )
    table = removable_table(outcomes).set_index("curve")
    assert table["share_shown"].to_dict() == {"a": pytest.approx(0.1), "b": 0}
    assert table.loc["a", "is_lower_bound"]


def test_interval_covers_the_truth():
    # All right at baseline; a question turns wrong with probability 0.4 · share, so the change is −0.4 · share, a
    # straight line that crosses −0.04 at share 0.1.
    luck = np.random.default_rng(2).random((200, 400))  # 200 studies, each a score of its own
    points = [
        (f"{number}:{share}", str(number), share, lucky > 0.4 * share)
        for number, lucky in enumerate(luck)
        for share in (0.05, 0.1, 0.2, 0.3)
    ]
    table = removable_table(outcomes_of(("baseline", "", 0.0, np.ones(400)), *points), margin=0.04, resamples=500)
    assert 0.90 <= table.eval("low <= 0.1 <= high").mean() <= 0.995


def test_same_seed_same_table_and_no_scores_no_rows():
    outcomes = outcomes_of(("baseline", "", 0.0, right(100)), ("a:0.1", "a", 0.1, right(95)))
    pd.testing.assert_frame_equal(removable_table(outcomes, seed=1), removable_table(outcomes, seed=1))
    assert removable_table(outcomes[outcomes["policy"] == "baseline"]).empty


def test_one_question_could_mean_anything():
    table = removable_table(outcomes_of(("baseline", "", 0.0, right(1, 1)), ("a:0.1", "a", 0.1, right(1, 1))))
    assert table.loc[0, ["low", "high", "share_shown"]].tolist() == [0, 0.1, 0]


def test_margin_is_not_negative():
    with pytest.raises(InputError, match="margin"):
        removable_table(outcomes_of(("baseline", "", 0.0, right(1))), margin=-1)


def test_ten_questions_without_a_change_are_no_certainty():
    """No draw of the bootstrap can show a fall that did not happen once; that says little with ten questions."""
    same = pd.concat([
        pd.DataFrame({
            "policy": policy, "curve": score, "share_asked": share, "threshold": np.nan, "task": "t",
            "doc_id": np.arange(questions), "doc_hash": "x", "acc": 1.0, "share_off": share or 0.0, "num_inputs": 1,
            "num_tokens": 4, "questions": questions,
        })
        for questions in (10, 2_000)
        for policy, score, share in (("baseline", "", 0.0), ("ahon_ln:0.1", "ahon_ln", 0.1))
    ])  # fmt: skip
    few, many = (removable_table(of).iloc[0] for _, of in same.groupby("questions"))
    found = ["removable_share", "is_lower_bound", "low", "high", "share_shown"]
    assert few[found].tolist() == pytest.approx([0.1, True, 0.0, 0.1, 0.0])
    assert many[found].tolist() == pytest.approx([0.1, True, 0.1, 0.1, 0.1])
