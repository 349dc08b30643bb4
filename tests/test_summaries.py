import numpy as np
import pytest
import xarray as xr

from headcount.errors import InputError
from headcount.summaries import FINE_BITS, PART_BITS, ScoreSummary, Summary

RNG = np.random.default_rng(0)
DISTRIBUTIONS = {
    "weights near 1": 1 - RNG.beta(0.5, 8, size=(400, 3, 5)),
    "norms over decades": RNG.lognormal(0, 2, size=(400, 3, 5)),
    "both signs": RNG.normal(size=(400, 3, 5)),
    "few values": RNG.integers(0, 4, size=(400, 3, 5)).astype(float),
    "one value": np.full((400, 3, 5), 0.3),
}


@pytest.fixture(params=DISTRIBUTIONS)
def values(request):
    values = DISTRIBUTIONS[request.param].astype(np.float32)
    values[:, 2, 4] = np.nan  # a layer with fewer heads
    values[7, 0, 0] = np.nan
    return values


def test_quantiles_are_numpys_within_the_width_of_a_bin(values):
    shares = [0, 0.001, 0.05, 0.1, 0.3, 0.5, 0.999, 1]
    exact = np.nanquantile(values.astype(float), shares, method="interpolated_inverted_cdf")
    found = ScoreSummary.of(values).quantiles(shares)
    # Between two neighbours that are bins apart both ends are off by a bin's width at most.
    neighbours = np.quantile(values[~np.isnan(values)], shares, method="higher")
    width = np.maximum(np.abs(exact), np.abs(neighbours)) * 2.0**-FINE_BITS
    assert (np.abs(found - exact) <= width + 1e-38).all()  # the bin of 0 holds numbers next to it
    assert found[0] == np.nanmin(values)
    assert found[-1] == np.nanmax(values)


def test_the_cdf_is_off_by_less_than_one_bins_share(values):
    known = values[~np.isnan(values)]
    for at in np.quantile(known, [0.02, 0.3, 0.77]):
        exact = (known < at).mean()
        bin_share = (np.abs(known - at) <= abs(at) * 2.0**-FINE_BITS).mean()
        (found,) = ScoreSummary.of(values).share_below(at)
        assert abs(found - exact) <= bin_share + 1e-12
    assert ScoreSummary.of(values).share_below([known.min() - 1, known.max() + 1]).tolist() == [0, 1]


def test_each_heads_quantiles_are_off_by_less_than_a_bin(values):
    shares = [0, 0.1, 0.5, 0.83, 1]
    found = ScoreSummary.of(values).part_quantiles(shares)
    assert np.isnan(found[:, 2, 4]).all()  # the head that does not exist
    for layer, head in [(0, 0), (1, 3), (2, 0)]:
        exact = values[:, layer, head][~np.isnan(values[:, layer, head])].astype(float)
        for number, share in enumerate(shares):
            # Half a rank of 400 either way, and a bin.
            low, high = np.quantile(exact, [max(0, share - 0.003), min(1, share + 0.003)])
            width = max(abs(low), abs(high)) * 2.0**-PART_BITS + 1e-38
            assert low - width <= found[number, layer, head] <= high + width
        assert found[0, layer, head] == exact.min()
        assert found[-1, layer, head] == exact.max()


@pytest.mark.parametrize("below", [True, False])
def test_how_often_each_head_is_inactive(values, below):
    threshold = float(np.nanquantile(values, 0.3))
    beyond = values < threshold if below else values > threshold
    count = (~np.isnan(values)).sum(axis=0)
    near = (np.abs(values - threshold) <= abs(threshold) * 2.0**-PART_BITS).sum(axis=0)
    found = ScoreSummary.of(values).share_of_inputs(threshold, below=below)
    known = count > 0
    assert np.isnan(found[~known]).all()
    assert (np.abs(found * count - beyond.sum(axis=0)) <= near)[known].all()
    everywhere = ScoreSummary.of(values).share_of_inputs(1e9, below=below)
    assert (everywhere[known] == float(below)).all()


def test_a_sum_of_parts_is_the_whole(values):
    whole = ScoreSummary.of(values)
    parts = [ScoreSummary.of(part) for part in np.split(values, [3, 50, 399])]
    total = parts[2] + (parts[0] + parts[3]) + parts[1]
    np.testing.assert_array_equal(total.fine.codes, whole.fine.codes)
    np.testing.assert_array_equal(total.fine.counts, whole.fine.counts)
    np.testing.assert_array_equal(total.by_part.codes, whole.by_part.codes)
    np.testing.assert_array_equal(total.by_part.counts, whole.by_part.counts)
    np.testing.assert_array_equal(total.moments.count, whole.moments.count)
    np.testing.assert_allclose(total.moments.mean, whole.moments.mean, rtol=1e-12)
    np.testing.assert_allclose(total.moments.deviations, whole.moments.deviations, rtol=1e-9, atol=1e-9)


def test_moments_of_each_head_worked_by_hand():
    # Head 0: 1, 2, 6: mean 3, variance (4 + 1 + 9) / 3. Head 1: 5 once. Head 2: never.
    nan = np.nan
    values = np.array([[[1, 5, nan]], [[2, nan, nan]], [[6, nan, nan]]], np.float32)
    table = xr.Dataset(
        {"ahon": (("example", "layer", "head"), values)},
        coords={"layer": [4], "head": [0, 1, 2], "num_tokens": ("example", [3, 4, 5])},
        attrs={"seed": 0},
    )
    summary = Summary.of(table.isel(example=[0])) + Summary.of(table.isel(example=[1, 2]))
    heads = summary.heads.sel(score="ahon", layer=4)
    assert heads["count"].values.tolist() == [3, 1, 0]
    np.testing.assert_allclose(heads["mean"], [3, 5, nan])
    np.testing.assert_allclose(heads["variance"], [14 / 3, 0, nan])
    np.testing.assert_allclose(heads["smallest"], [1, 5, nan])
    np.testing.assert_allclose(heads["largest"], [6, 5, nan])
    assert (summary.num_inputs, summary.num_tokens, summary.attrs) == (3, 12, {"seed": 0})
    with pytest.raises(InputError, match="different scores"):
        summary + Summary.of(table.rename(ahon="awft"))


def test_a_score_that_was_never_measured():
    summary = ScoreSummary.of(np.full((2, 1, 2), np.nan, np.float32))
    assert np.isnan(summary.quantiles([0.1, 0.5])).all()
    assert np.isnan(summary.share_of_inputs(1.0, below=True)).all()
    assert summary.share_below([1.0]).tolist() == [0]
