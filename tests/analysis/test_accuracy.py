import numpy as np
import pandas as pd
import pytest
from lm_eval.api.metrics import aggregate_subtask_metrics

from headcount.analysis import accuracy_table
from headcount.analysis.accuracy import mcnemar
from headcount.analysis.bootstrap import interval, resampled_means
from headcount.analysis.change import PairedCounts
from headcount.errors import InputError


def rows(policy, right, *, score="", share_asked=np.nan, share_off=0.0, task="t", first=0):
    return pd.DataFrame({
        "policy": policy, "curve": score, "share_asked": share_asked, "threshold": np.nan, "task": task,
        "doc_id": np.arange(first, first + len(right)), "doc_hash": "x", "acc": np.asarray(right, dtype=float),
        "loglikelihoods": None, "share_off": share_off, "num_inputs": 4, "num_tokens": 40,
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
                share_off=[0.1, 0.2, 0.3, 0.2, 0.2],
            ),
            rows("baseline", [1, 1, 1, 1, 0]),
            rows("fixed", [1, 1, 1, 1, 0], share_off=0.05),
        ]
    )


def test_values_worked_by_hand(outcomes):
    table = accuracy_table(outcomes)
    assert list(table["policy"]) == ["baseline", "ahon_ln:0.10", "fixed"]
    assert list(table["curve"]) == ["", "ahon_ln", ""]
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
    assert (fixed["change"], fixed["p_mcnemar"]) == (0, 1)
    # No change in 5 questions proves little: (5x − ½)² = 1.96² · 5 · x (1 − x) at x = 0.5371, either side.
    assert (fixed["change_low"], fixed["change_high"]) == pytest.approx((-0.5371, 0.5371), abs=1e-4)
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


def test_tasks_weigh_as_lm_eval_weighs_the_subjects_of_mmlu():
    # 1 of 4 and 10 of 20 right: 11 of 24 by size, 3 / 8 by subject.
    subjects = {"a": [1, 0, 0, 0], "b": [1] * 10 + [0] * 10}
    table = accuracy_table(pd.concat([rows("baseline", right, task=task) for task, right in subjects.items()]))
    by_size = aggregate_subtask_metrics([1 / 4, 10 / 20], [4, 20], weight_by_size=True)
    assert table.loc[0, "accuracy"] == pytest.approx(by_size) == pytest.approx(11 / 24)


def test_verdict_is_about_the_margin():
    # 1,000 questions. few: 2 lost; even: 60 lost, 50 gained, a fall of 1 point; many: 60 lost.
    def pair(name, lost, gained):
        question = np.arange(1000)
        return [rows("baseline", question < lost), rows(name, (question >= lost) & (question < lost + gained))]

    right = {"few": pair("few", 2, 0), "even": pair("even", 60, 50), "many": pair("many", 60, 0)}
    verdicts = {name: accuracy_table(pd.concat(pair)).set_index("policy").loc[name] for name, pair in right.items()}
    assert {name: row["within_margin"] for name, row in verdicts.items()} == {
        "few": "shown", "even": "undecided", "many": "refuted",
    }  # fmt: skip
    for row in verdicts.values():
        assert (row["change_bound"] >= -0.01) == (row["confidence_within"] >= 0.95)
        assert row["change_low"] < row["change_bound"] < row["change"]
    wider = accuracy_table(pd.concat(right["many"]), margin=0.1).loc[1]
    assert wider["within_margin"] == "shown"


@pytest.mark.parametrize("questions_a_task", [1, 2, 5, 60])
def test_intervals_cover_the_truth(questions_a_task):
    # 400 studies of 60 questions. In one task of four the change is −1 with probability 0.4, in the others −1 or 1 with
    # 0.05 each. Then the same with partial credit: the change times a uniform number. Nominal 95%; three standard errors
    # of 400 studies are 3.3 points.
    tasks = np.arange(60) // questions_a_task
    hard = tasks % 4 == 0
    luck = np.random.default_rng(3).random((2, 60, 400))
    change = np.where(hard[:, None], -1.0 * (luck[0] < 0.4), 1.0 * (luck[0] < 0.05) - (luck[0] > 0.95))
    truth = -0.4 * hard.mean()
    studies = [PairedCounts.of(column, tasks) for column in change.T]
    assert 0.917 <= np.mean([study.lower(0.975) <= truth <= study.upper(0.975) for study in studies]) <= 0.995
    samples = resampled_means(change * luck[1], tasks, resamples=1_000, rng=np.random.default_rng(0))
    low, high = interval(samples, 0.95, tasks)
    assert 0.917 <= np.mean((low <= truth / 2) & (truth / 2 <= high)) <= 0.995


def test_a_finer_metric_has_a_verdict_too():
    nats = np.random.default_rng(0).normal(-1.0, 0.1, 100)
    outcomes = pd.concat([
        rows(name, np.zeros(100)).assign(gold_loglikelihood=nats + shift)
        for name, shift in (("baseline", 0.0), ("same", 0.0), ("worse", -0.5 + np.linspace(-0.1, 0.1, 100)))
    ])  # fmt: skip
    table = accuracy_table(outcomes, metric="gold_loglikelihood", margin=0.05).set_index("policy")
    assert table["within_margin"].tolist()[1:] == ["shown", "refuted"]
    assert table.loc["worse", "change"] == pytest.approx(-0.5)
    assert -0.55 < table.loc["worse", "change_low"] < table.loc["worse", "change_bound"] < -0.5
    assert table.loc["worse", "confidence_within"] < 0.001


@pytest.mark.parametrize(("gained", "lost", "p"), [(0, 0, 1.0), (0, 5, 2 / 32), (5, 0, 2 / 32), (2, 2, 1.0)])
def test_mcnemar_by_hand(gained, lost, p):
    assert mcnemar(gained, lost) == pytest.approx(p)


def test_errors_say_what_to_do(outcomes):
    with pytest.raises(InputError, match=r"no policy 'baseline' among ahon_ln:0\.10"):
        accuracy_table(outcomes[outcomes["curve"] == "ahon_ln"])
    with pytest.raises(InputError, match=r"Unknown metric 'accuracy'.*acc"):
        accuracy_table(outcomes, metric="accuracy")
    with pytest.raises(InputError, match=r"'x' has no question with 'acc' in common"):
        accuracy_table(pd.concat([outcomes, rows("x", [1], first=9)]))
    with pytest.raises(InputError, match="answered twice under policy 'fixed'"):
        accuracy_table(pd.concat([outcomes, rows("fixed", [1])]))
    with pytest.raises(InputError, match="lack the columns curve"):
        accuracy_table(outcomes.drop(columns="curve"))
    with pytest.raises(InputError, match="share_off is NaN"):
        accuracy_table(outcomes.assign(share_off=np.nan))
    with pytest.raises(InputError, match="between 0 and 1"):
        accuracy_table(outcomes, confidence=95)
