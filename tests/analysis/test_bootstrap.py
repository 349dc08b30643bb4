import numpy as np
import pytest
from scipy.stats import norm, t

from headcount.analysis.bootstrap import (
    check_confidence,
    confidence_above,
    degrees_of_freedom,
    interval,
    percentile,
    resampled_means,
)
from headcount.errors import InputError


def means(values, tasks, resamples=20_000):
    columns = np.asarray(values, dtype=float).reshape(len(tasks), -1)
    return resampled_means(columns, np.asarray(tasks), resamples=resamples, rng=np.random.default_rng(0))


def test_nan_is_left_out_and_columns_stay_together():
    drawn = means([[1.0, 2.0, np.nan], [3.0, 6.0, 5.0], [4.0, 8.0, 5.0]], [0, 0, 0], resamples=200)
    np.testing.assert_allclose(drawn[:, 1], 2 * drawn[:, 0])
    assert set(drawn[~np.isnan(drawn[:, 2]), 2]) == {5.0}
    assert np.isnan(drawn[:, 2]).any()  # some draw has only question 0


def test_spread_is_the_standard_error_within_tasks():
    # Variances of the tasks, over n − 1: 2 (1, 3), 4 (10, 12, 14). Of the mean: (2/5)² · 2/2 + (3/5)² · 4/3 = 0.64.
    drawn = means([1, 3, 10, 12, 14], [0, 0, 1, 1, 1])
    assert drawn.mean() == pytest.approx(8, abs=0.02)
    assert drawn.var() == pytest.approx(0.64, rel=0.03)


def test_tasks_of_one_question_are_taken_together():
    # As one task of three: variance of 1, 3, 5 over 2 is 4, of the mean 4/3.
    assert means([1, 3, 5], [0, 1, 2]).var() == pytest.approx(4 / 3, rel=0.03)
    # One alone joins another task: 0, 0 and 3 together have 3, of the mean 1.
    assert means([0, 0, 3], [4, 4, 1]).var() == pytest.approx(1, rel=0.03)
    assert degrees_of_freedom(np.array([0, 1, 2])) == 2
    assert degrees_of_freedom(np.array([0, 0, 1, 1, 1])) == 3


def test_one_question_has_no_interval():
    drawn = means([0.5], [0], resamples=10)
    assert np.isnan(interval(drawn, 0.95, np.array([0]))).all()
    assert np.isnan(confidence_above(drawn, 0.0, np.array([0]))).all()


def test_percentiles_are_students():
    # Samples that are normal quantiles: the 2.5% percentile of 5 questions lies where Student's t with 4 degrees does.
    samples = norm.ppf((np.arange(100_000) + 0.5) / 100_000)[:, None]
    tasks = np.zeros(5, dtype=int)
    assert percentile(samples, 0.025, tasks)[0] == pytest.approx(t.ppf(0.025, 4), abs=0.01)
    assert confidence_above(samples, t.ppf(0.025, 4), tasks)[0] == pytest.approx(0.975, abs=1e-3)
    low, high = interval(samples, 0.95, tasks)
    assert low[0] == pytest.approx(-high[0])


def test_a_finite_number_of_samples_never_shows_certainty():
    samples = np.full((98, 1), 0.5)
    tasks = np.zeros(1_000_000, dtype=int)
    assert confidence_above(samples, 0.0, tasks)[0] == pytest.approx(0.99, abs=1e-6)
    assert confidence_above(samples, 1.0, tasks)[0] == pytest.approx(0.01, abs=1e-6)


def test_confidence_is_a_fraction():
    with pytest.raises(InputError, match="between 0 and 1"):
        check_confidence(95)
