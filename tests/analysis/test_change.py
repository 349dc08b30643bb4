import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import multinomial, norm

from headcount.analysis.change import PairedCounts, design_effect


def reference_score(gained, lost, total, change):
    """Tango's score by numerical maximisation of the likelihood, with the continuity of half a question."""

    def minus_loglikelihood(p_lost):
        return -multinomial.logpmf(
            [gained, lost, total - gained - lost], total, [p_lost + change, p_lost, 1 - 2 * p_lost - change]
        )

    low, high = max(0.0, -change), (1 - change) / 2
    p_lost = minimize_scalar(
        minus_loglikelihood, bounds=(low + 1e-12, high - 1e-12), method="bounded", options={"xatol": 1e-12}
    ).x
    distance = gained - lost - total * change
    distance = np.sign(distance) * max(abs(distance) - 0.5, 0)
    return distance / np.sqrt(total * (2 * p_lost + change - change**2))


@pytest.mark.parametrize(("gained", "lost", "total"), [(1, 4, 40), (12, 3, 60), (7, 7, 30), (2, 9, 11)])
def test_score_maximises_the_likelihood(gained, lost, total):
    counts = PairedCounts(gained=gained, lost=lost, total=total)
    for change in (-0.3, -0.05, -0.01, 0.02, 0.25):
        assert counts.score(change) == pytest.approx(reference_score(gained, lost, total, change), abs=1e-5)


def test_bounds_are_where_the_score_reaches_the_confidence():
    counts = PairedCounts(gained=3, lost=8, total=120)
    lower = brentq(lambda change: reference_score(3, 8, 120, change) - norm.ppf(0.95), -0.5, counts.change - 0.01)
    upper = brentq(lambda change: reference_score(3, 8, 120, change) + norm.ppf(0.95), counts.change + 0.01, 0.5)
    assert counts.lower(0.95) == pytest.approx(lower, abs=1e-6)
    assert counts.upper(0.95) == pytest.approx(upper, abs=1e-6)
    assert counts.confidence_above(lower) == pytest.approx(0.95)


def test_no_change_at_all_by_hand():
    # Then p("lost") is −change, so (n·x − ½)² = z² · n · x (1 − x): for n = 300 and z = 1.6449 at x = 0.012012.
    counts = PairedCounts(gained=0, lost=0, total=300)
    assert counts.lower(0.95) == pytest.approx(-0.012012, abs=1e-6)
    assert counts.upper(0.95) == pytest.approx(0.012012, abs=1e-6)


def test_bounds_stay_within_one():
    assert PairedCounts(gained=0, lost=5, total=5).lower(0.99) == -1
    assert PairedCounts(gained=5, lost=0, total=5).upper(0.99) == 1
    assert PairedCounts(gained=0, lost=1, total=1).upper(0.95) < 1


@pytest.mark.parametrize("total", [50, 100, 200, 268, 300])
@pytest.mark.parametrize("p_gained", [0.0, 0.005, 0.02, 0.05])
def test_within_a_point_is_wrongly_shown_or_refuted_in_no_more_than_5_percent(total, p_gained):
    # Not a simulation: the probability of every outcome of a study whose true change is exactly −0.01.
    p_lost = p_gained + 0.01
    shown = refuted = 0.0
    for gained in range(int(total * p_gained * 3) + 8):
        for lost in range(int(total * p_lost * 3) + 8):
            score = PairedCounts(gained=gained, lost=lost, total=total).score(-0.01)
            outcome = multinomial.pmf(
                [gained, lost, total - gained - lost], total, [p_gained, p_lost, 1 - p_gained - p_lost]
            )
            shown += outcome * (score > norm.ppf(0.95))
            refuted += outcome * (score < -norm.ppf(0.95))
    assert shown <= 0.05
    assert refuted <= 0.05


def test_design_effect_by_hand():
    # Task 0: 1, 1, 0, 0; task 1: 0, 0, 0, 0. Within: squares 4 · ¼ = 1 over 8 − 2 questions; in all: mean ¼, squares
    # 2 · 9/16 + 6 · 1/16 = 1.5 over 7. (8 · 1/6 + 2) / (8 · 1.5/7 + 2) = 3.3333 / 3.7143.
    values, tasks = np.array([1.0, 1, 0, 0, 0, 0, 0, 0]), np.repeat([0, 1], 4)
    assert design_effect(values, tasks) == pytest.approx(0.897436, abs=1e-6)
    assert design_effect(values, np.zeros(8, dtype=int)) == 1
    assert design_effect(values, np.arange(8)) == 1


def test_tasks_that_differ_narrow_the_bounds():
    change = np.repeat([0.0, -1.0], 50)
    together = PairedCounts.of(change, np.zeros(100, dtype=int))
    apart = PairedCounts.of(change, np.repeat([0, 1], 50))
    assert together.lower(0.95) < apart.lower(0.95) < -0.5 < apart.upper(0.95) < together.upper(0.95)


def test_questions_not_asked_do_not_count():
    change = np.array([1.0, np.nan, -1.0, 0.0, np.nan])
    assert PairedCounts.of(change, np.array([0, 0, 0, 0, 3])) == PairedCounts(gained=1, lost=1, total=3)
