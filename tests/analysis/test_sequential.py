import numpy as np
import pandas as pd
import pytest

from headcount.analysis import SequentialTest, UntilDecided, asking_order, sequential_table
from headcount.errors import InputError


def population(total, gained, lost):
    """Differences of a whole benchmark."""
    return np.repeat([1.0, -1.0, 0.0], [gained, lost, total - gained - lost])


def study(differences, rng, *, batch, last=None):
    """Asks in random order until decided, or until ``last`` questions."""
    order = rng.permutation(differences)
    test = SequentialTest(total=len(order))
    for start in range(0, last or len(order), batch):
        if test.update(order[start : start + batch]):
            break
    return test


def test_wealth_by_hand():
    # 4 questions, none to fall: against "the mean is at most 0" after differences 0, 1: the first is expected at 0 and
    # gains nothing; the second at 0 too and gains its stake (1 + 1) / 1 − 1 = 1 times, so the wealth is the mean of
    # 1 + stake over the six stakes. 0.04, 0.0754, 0.1421, 0.2677, 0.5043, 0.95: 1.3299. It suffices at 1 / 1.3299 = 0.7519.
    differences = [0.0, 1.0]
    assert SequentialTest(total=4, margin=0, confidence=0.248).update(differences) == "within"
    assert SequentialTest(total=4, margin=0, confidence=0.2485).update(differences) is None
    # So does the bettor on a fall.
    assert SequentialTest(total=4, margin=0, confidence=0.248).update([0.0, -1.0]) == "beyond"
    assert SequentialTest(total=4, margin=0, confidence=0.2485).update([0.0, -1.0]) is None
    # After a first 1 the other 3 are expected to make up −1: at −1/3, 2/3 above −1. A second 1 lies 2 above −1, 3 times as far,
    # and gains twice the stake: the mean of (1 + stake) (1 + 2 · stake) is 2.4081, 1 − 1 / 2.4081 = 0.5847.
    assert SequentialTest(total=4, margin=0, confidence=0.5845).update([1.0, 1.0]) == "within"
    assert SequentialTest(total=4, margin=0, confidence=0.5849).update([1.0, 1.0]) is None


def test_what_is_left_is_counted():
    # 10 questions, at most 2 net losses allowed. After 7 unchanged and 1 gained, 2 are left: the fall is at most 1.
    test = SequentialTest(total=10, margin=0.2)
    assert test.update([0.0] * 7) is None
    assert test.update([1.0]) == "within"
    assert test.decided_after == 8
    assert test.bounds[0] >= -0.1


def test_after_the_last_question_it_is_exact():
    on_the_margin = SequentialTest(total=100)
    assert on_the_margin.update(population(100, 2, 3)) == "within"  # −1 of 100: not more than a point
    assert on_the_margin.bounds == (-0.01, -0.01)
    beyond = SequentialTest(total=100, confidence=0.999999)
    assert beyond.update(population(100, 2, 4)) == "beyond"
    assert beyond.decided_after == 100


def test_the_order_of_asking_is_a_seeds_alone():
    order = asking_order(500, seed=3)
    assert sorted(order) == list(range(500))
    assert order != asking_order(500, seed=4)
    # Saved runs are continued in this order, so it must stay what it is.
    assert asking_order(8, seed=0) == [3, 7, 5, 2, 4, 1, 6, 0]


@pytest.mark.parametrize("wrong", [{"margin": 5}, {"confidence": 95}, {"questions_a_look": 0}])
def test_a_rule_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(InputError):
        UntilDecided(**wrong)


def test_batches_do_not_matter():
    order = np.random.default_rng(0).permutation(population(600, 5, 60))
    at_once = SequentialTest(total=600)
    at_once.update(order[:400])
    one_by_one = SequentialTest(total=600)
    for difference in order[:400]:
        one_by_one.update(difference)
    assert one_by_one.verdict == at_once.verdict == "beyond"
    assert one_by_one.decided_after == at_once.decided_after < 400
    assert one_by_one.bounds == pytest.approx(at_once.bounds)


def test_bounds_agree_with_the_verdict():
    order = np.random.default_rng(1).permutation(population(3000, 20, 25))
    test = SequentialTest(total=3000)
    while test.update(order[test.num_asked : test.num_asked + 1]) is None:
        assert test.num_asked < 3000
    assert test.verdict == "within"
    assert test.bounds[0] == pytest.approx(-0.01, abs=2e-4)  # the first question at which the bound is at the margin
    assert test.bounds[0] < test.change < test.bounds[1]


@pytest.mark.parametrize(
    ("gained", "lost", "wrong"),
    [
        (30, 41, "within"),  # a fall of 1.1 points: hardly beyond, where an error is likeliest
        (30, 40, "beyond"),  # the margin itself: still within
    ],
)
def test_wrong_verdicts_in_no_more_than_5_percent_of_1000_studies(gained, lost, wrong):
    # Looked at after every question but the last 50, after which nobody can err.
    rng = np.random.default_rng(5)
    differences = population(1000, gained, lost)
    verdicts = [study(differences, rng, batch=190, last=950).verdict for _ in range(1000)]
    assert verdicts.count(wrong) <= 50
    assert verdicts.count(wrong) > 0  # the simulation reaches the place where errors happen


def test_bounds_hold_over_all_looks_together():
    # They are the narrowest that any look so far allowed, so the last shows every failure. Each bound fails in no more than
    # 5% of 200 studies; 3 standard errors more: 9.7%.
    rng = np.random.default_rng(6)
    differences = population(600, 20, 40)
    failed = np.zeros(2)
    for _ in range(200):
        low, high = study(differences, rng, batch=500, last=500).bounds
        failed += low > differences.mean(), high < differences.mean()
    assert (failed / 200 <= 0.097).all()


def test_questions_are_saved_where_the_answer_is_clear():
    # MMLU's size. Half of 3 points lost and gained: within; a fall of 5 points: beyond.
    rng = np.random.default_rng(7)
    within = [study(population(14_042, 211, 211), rng, batch=250) for _ in range(20)]
    beyond = [study(population(14_042, 211, 913), rng, batch=250) for _ in range(20)]
    assert {test.verdict for test in within} == {"within"}
    assert {test.verdict for test in beyond} == {"beyond"}
    assert np.mean([test.num_asked for test in within]) < 0.3 * 14_042
    assert np.mean([test.num_asked for test in beyond]) < 0.1 * 14_042


def test_table_follows_the_order_of_asking():
    def rows(policy, ids, acc, share):
        return pd.DataFrame({
            "policy": policy, "curve": "" if policy == "baseline" else "awft", "share_asked": share, "task": "t",
            "doc_id": ids, "share_off": share, "acc": acc,
        })  # fmt: skip

    ids = np.random.default_rng(0).permutation(400)
    baseline = rows("baseline", ids, np.ones(400), 0.0)
    bad = rows("awft:0.3", ids[:60], np.arange(60) % 2, 0.3)
    good = rows("awft:0.1", ids[::-1], np.where(np.arange(400) == 7, 0, 1), 0.1)
    table = sequential_table(pd.concat([bad, baseline, good]), total=400).set_index("policy")
    assert table["verdict"].to_dict() == {"awft:0.3": "beyond", "awft:0.1": "within"}
    assert table["num_questions"].to_dict() == {"awft:0.3": 60, "awft:0.1": 400}
    assert table.loc["awft:0.3", "change"] == -0.5
    assert table.loc["awft:0.3", "change_low"] < -0.5 < table.loc["awft:0.3", "change_high"] < -0.01
    assert table.loc["awft:0.3", "decided_after"] < 60
    again = SequentialTest(total=400)
    again.update(np.where(np.arange(400) == 7, -1, 0))
    assert table.loc["awft:0.1", "decided_after"] == again.decided_after
    assert sequential_table(baseline, total=400).empty


def test_errors_say_what_to_do():
    with pytest.raises(InputError, match="between −1 and 1"):
        SequentialTest(total=3).update([0.0, np.nan])
    with pytest.raises(InputError, match="between −1 and 1"):
        SequentialTest(total=3).update([2.0])
    with pytest.raises(InputError, match="has 3 questions; 4 came"):
        SequentialTest(total=3).update([0.0] * 4)
    with pytest.raises(InputError, match="at least 1; got 0"):
        SequentialTest(total=0)
    with pytest.raises(InputError, match="margin"):
        SequentialTest(total=3, margin=-0.1)
    with pytest.raises(InputError, match="confidence"):
        SequentialTest(total=3, confidence=95)


def test_nothing_asked_yet():
    test = SequentialTest(total=10)
    assert test.update([]) is None
    assert np.isnan(test.change)
    assert test.bounds == pytest.approx((-1, 1), abs=1e-6)
