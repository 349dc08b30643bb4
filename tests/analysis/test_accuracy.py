import numpy as np
import pandas as pd
import pytest

from headcount.analysis import accuracy_table
from headcount.analysis.accuracy import mcnemar
from headcount.analysis.outcomes import resampled_means
from headcount.errors import InputError


def rows(policy, right, *, score="", share_asked=np.nan, share_zeroed=0.0, task="t", first=0):
    return pd.DataFrame({
        "policy": policy, "score": score, "share_asked": share_asked, "threshold": np.nan, "task": task,
        "doc_id": np.arange(first, first + len(right)), "doc_hash": "x", "acc": np.asarray(right, dtype=float),
        "loglikelihoods": None, "share_zeroed": share_zeroed, "num_inputs": 4, "num_tokens": 40,
    })  # fmt: skip


@pytest.fixture
def outcomes():
    # 5 questions. baseline right on 0, 1, 2, 3; ahon_ln:0.10 on 0, 4: lost 1, 2, 3; gained 4.
    return pd.concat(
        [
            rows(
                "ahon_ln:0.10",
                [1, 0, 0, 0, 1],
                score="ahon_ln",
                share_asked=0.1,
                share_zeroed=[0.1, 0.2, 0.3, 0.2, 0.2],
            ),
            rows("baseline", [1, 1, 1, 1, 0]),
            rows("fixed", [1, 1, 1, 1, 0], share_zeroed=0.05),
        ]
    )


def test_values_worked_by_hand(outcomes):
    table = accuracy_table(outcomes)
    assert list(table["policy"]) == ["baseline", "ahon_ln:0.10", "fixed"]
    assert list(table["score"]) == ["", "ahon_ln", ""]
    assert list(table["num_questions"]) == [5, 5, 5]
    baseline, zeroed, fixed = (row for _, row in table.iterrows())
    assert baseline["accuracy"] == pytest.approx(4 / 5)
    assert baseline["change"] == 0
    assert np.isnan(baseline["change_low"])
    assert np.isnan(baseline["p_mcnemar"])
    assert zeroed["accuracy"] == pytest.approx(2 / 5)
    assert zeroed["change"] == pytest.approx(-2 / 5)  # (1 gained − 3 lost) / 5
    assert zeroed["share_realised"] == pytest.approx(0.2)  # (0.1 + 0.2 + 0.3 + 0.2 + 0.2) / 5
    assert zeroed["share_asked"] == 0.1
    # 4 discordant, 1 gained: P(≤1 of 4) = (1 + 4) / 16, doubled: 0.625
    assert zeroed["p_mcnemar"] == pytest.approx(0.625)
    assert (fixed["change"], fixed["change_low"], fixed["change_high"], fixed["p_mcnemar"]) == (0, 0, 0, 1)
    assert np.isnan(fixed["share_asked"])


def test_only_common_questions_count():
    # baseline: questions 0..3, right on 0, 1. policy: 2..5, right on 2, 4, 5. Common: 2, 3: 0/2 against 1/2.
    table = accuracy_table(pd.concat([rows("baseline", [1, 1, 0, 0]), rows("random:0.1", [1, 0, 1, 1], first=2)]))
    assert table.loc[1, "num_questions"] == 2
    assert table.loc[1, "accuracy"] == 0.5
    assert table.loc[1, "change"] == 0.5


def test_a_metric_that_one_task_lacks_counts_in_the_other_alone(outcomes):
    other = rows("baseline", [np.nan, np.nan], task="gsm8k").assign(exact_match=[0.0, 1.0])
    table = accuracy_table(pd.concat([outcomes, other]))
    assert table.loc[0, "num_questions"] == 5


def test_partial_credit_has_no_mcnemar(outcomes):
    outcomes["f1"] = outcomes["acc"] * 0.5
    table = accuracy_table(outcomes, metric="f1")
    assert table["p_mcnemar"].isna().all()
    assert table.loc[1, "change"] == pytest.approx(-0.2)


def test_same_seed_same_interval_and_input_untouched(outcomes):
    before = outcomes.copy(deep=True)
    pd.testing.assert_frame_equal(accuracy_table(outcomes, seed=3), accuracy_table(outcomes, seed=3))
    pd.testing.assert_frame_equal(outcomes, before)


def test_interval_draws_within_tasks():
    # Every question of task a changes by +1, every one of b by −1: within tasks nothing varies.
    table = accuracy_table(
        pd.concat([
            rows("baseline", [0] * 10, task="a"), rows("baseline", [1] * 10, task="b"),
            rows("random:0.1", [1] * 10, task="a"), rows("random:0.1", [0] * 10, task="b"),
        ])
    )  # fmt: skip
    assert (table.loc[1, "change_low"], table.loc[1, "change_high"]) == (0, 0)


def test_interval_covers_the_truth():
    # 300 studies of 150 questions whose change is −1, 0, +1 with probabilities 0.15, 0.75, 0.10: truth −0.05. Each is
    # one policy against a baseline of 0. Nominal 95%; three standard errors of 300 studies are 3.8 points.
    change = np.random.default_rng(1).choice([-1, 0, 1], p=[0.15, 0.75, 0.10], size=(300, 150))
    studies = [rows(str(number), values) for number, values in enumerate(change)]
    table = accuracy_table(pd.concat([rows("baseline", np.zeros(150)), *studies]), resamples=1_000).iloc[1:]
    assert 0.91 <= table.eval("change_low <= -0.05 <= change_high").mean() <= 0.99


def test_resampled_means_leave_nan_out_and_keep_columns_together():
    values = np.array([[1.0, 2.0, np.nan], [3.0, 6.0, 5.0], [4.0, 8.0, 5.0]])
    means = resampled_means(values, np.zeros(3, dtype=int), resamples=200, rng=np.random.default_rng(0))
    np.testing.assert_allclose(means[:, 1], 2 * means[:, 0])
    assert set(means[~np.isnan(means[:, 2]), 2]) == {5.0}
    assert np.isnan(means[:, 2]).any()  # some draw has only question 0


@pytest.mark.parametrize(("gained", "lost", "p"), [(0, 0, 1.0), (0, 5, 2 / 32), (5, 0, 2 / 32), (2, 2, 1.0)])
def test_mcnemar_by_hand(gained, lost, p):
    assert mcnemar(gained, lost) == pytest.approx(p)


def test_errors_say_what_to_do(outcomes):
    with pytest.raises(InputError, match=r"no policy 'baseline' among ahon_ln:0\.10"):
        accuracy_table(outcomes[outcomes["score"] == "ahon_ln"])
    with pytest.raises(InputError, match=r"Unknown metric 'accuracy'.*acc"):
        accuracy_table(outcomes, metric="accuracy")
    with pytest.raises(InputError, match=r"'x' has no question with 'acc' in common"):
        accuracy_table(pd.concat([outcomes, rows("x", [1], first=9)]))
    with pytest.raises(InputError, match="answered twice under policy 'fixed'"):
        accuracy_table(pd.concat([outcomes, rows("fixed", [1])]))
    with pytest.raises(InputError, match="lack the columns score"):
        accuracy_table(outcomes.drop(columns="score"))
    with pytest.raises(InputError, match="share_zeroed is NaN"):
        accuracy_table(outcomes.assign(share_zeroed=np.nan))
    with pytest.raises(InputError, match="between 0 and 1"):
        accuracy_table(outcomes, confidence=95)
