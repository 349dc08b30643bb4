import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from headcount.errors import InputError
from headcount.measure import measure_heads
from headcount.scores import get_score
from headcount.summaries import Summary
from headcount.thresholding import SHARES, not_finite, said_not_finite, thresholds


def table(**scores) -> xr.Dataset:
    values = {name: np.asarray(v, np.float32).reshape(1, 1, -1) for name, v in scores.items()}
    return xr.Dataset({name: (("example", "layer", "head"), v) for name, v in values.items()})


# Sorted scores 1, 2, 4, 8, 16 have cumulative shares 0.2, 0.4, 0.6, 0.8, 1.
FIVE = [8.0, 1.0, 16.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.0, 1.0),  # below the first point: clamped to the smallest
        (0.1, 1.0),
        (0.2, 1.0),  # on a point
        (0.3, 1.5),  # halfway from (0.2, 1) to (0.4, 2)
        (0.45, 2.5),  # a quarter of the way from (0.4, 2) to (0.6, 4)
        (0.8, 8.0),
        (0.9, 12.0),
        (1.0, 16.0),
    ],
)
def test_threshold_of_a_low_score_by_hand(share, expected):
    assert thresholds(table(ahon=FIVE), [share])["ahon"].item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.0, 16.0),  # taken at 1: the largest
        (0.1, 12.0),  # at 0.9, halfway from (0.8, 8) to (1, 16)
        (0.3, 6.0),  # at 0.7, halfway from (0.6, 4) to (0.8, 8)
        (0.6, 2.0),  # at 0.4, on a point
        (0.95, 1.0),  # at 0.05: clamped
        (1.0, 1.0),
    ],
)
def test_threshold_of_a_high_score_by_hand(share, expected):
    assert thresholds(table(awft=FIVE), [share])["awft"].item() == pytest.approx(expected)


@pytest.mark.parametrize("score", ["ahon", "awft"])
def test_at_share_0_nothing_is_strictly_beyond(score):
    values = np.array(FIVE)
    cut = thresholds(table(**{score: FIVE}), [0.0])[score].item()
    assert not (values < cut if score == "ahon" else values > cut).any()


def test_nan_is_left_out():
    with_nan = thresholds(table(ahon=[*FIVE, np.nan, np.nan, np.nan]))
    np.testing.assert_array_equal(with_nan["ahon"], thresholds(table(ahon=FIVE))["ahon"])


def test_one_score_has_one_threshold():
    np.testing.assert_array_equal(thresholds(table(ahon=[3.0]))["ahon"], np.full(len(SHARES), 3.0))


def test_result_has_a_row_of_shares_for_each_score_and_keeps_attributes():
    cuts = thresholds(table(ahon=FIVE, awft=FIVE).assign_attrs(model="tiny"))
    assert set(cuts.data_vars) == {"ahon", "awft"}
    assert cuts["ahon"].dims == ("share",)
    assert cuts["ahon"].dtype == np.float64
    assert tuple(cuts["share"].values) == SHARES == (0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
    assert cuts.attrs == {"model": "tiny"}


@pytest.mark.parametrize("share", [-0.1, 1.1, 30, float("nan")])
def test_shares_outside_0_to_1_are_refused(share):
    with pytest.raises(InputError, match="A share lies between 0 and 1"):
        thresholds(table(ahon=FIVE), [0.1, share])


def test_no_share_or_no_score_is_refused():
    with pytest.raises(InputError, match="at least one share and one measured score"):
        thresholds(table(ahon=FIVE), [])
    with pytest.raises(InputError, match="at least one share and one measured score"):
        thresholds(xr.Dataset())


def test_a_score_nowhere_measured_is_refused_by_name():
    with pytest.raises(InputError, match=r"Score aeqd_ln has no value in this table.*longer inputs"):
        thresholds(table(ahon=FIVE, aeqd_ln=[np.nan] * 5))


def test_an_unknown_score_is_refused():
    with pytest.raises(InputError, match="Unknown score 'ahan'"):
        thresholds(table(ahan=FIVE))


@settings(deadline=None)
@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=50),
    st.floats(0, 1),
    st.sampled_from(["ahon", "awft"]),
)
def test_realised_share_on_the_measured_scores(values, share, score):
    # Let k/M ≤ p < (k+1)/M. Low: the threshold lies in [x_k, x_k+1], so at most k scores are below: k/M ≤ p.
    # High, with k/M ≤ 1 − p < (k+1)/M: at most M − k are above, and (M − k)/M < p + 1/M.
    scores = table(**{score: values})
    cut = thresholds(scores, [share])[score].item()
    measured = scores[score].values.astype(np.float64)
    assert measured.min() <= cut <= measured.max()
    inactive = get_score(score).inactive(measured, cut).mean()
    assert inactive <= share + (0 if score == "ahon" else 1 / measured.size) + 1e-9


@settings(deadline=None)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=50, unique=True), st.floats(0, 1))
def test_realised_share_falls_short_by_at_most_one_score(values, share):
    # Distinct scores, low: with k/M ≤ p the scores x_1…x_(k−1) are surely below the threshold; p − (k−1)/M ≤ 2/M.
    # High: with 1 − p < (k+1)/M the threshold is at most x_k+1, so x_k+2…x_M are above: (M − k − 1)/M ≥ p − 1/M.
    for score, slack in (("ahon", 2), ("awft", 1)):
        scores = table(**{score: values})
        cut = thresholds(scores, [share])[score].item()
        measured = scores[score].values.astype(np.float64)
        assert get_score(score).inactive(measured, cut).mean() >= share - slack / measured.size - 1e-9


def ragged(dtype=np.float32):
    """Two inputs, layers 4 and 5 of 3 and 2 heads; one NaN, one infinity, and the place of the head that is not there."""
    values = np.arange(1, 13, dtype=dtype).reshape(2, 2, 3)
    values[:, 1, 2] = np.nan  # no such head
    broken = values.copy()
    broken[0, 1, 0], broken[1, 1, 1] = np.nan, np.inf
    dims = "example", "layer", "head"
    return xr.Dataset(
        {"awft": (dims, values), "ahon": (dims, broken)},
        coords={"layer": [4, 5], "head": [0, 1, 2], "num_tokens": ("example", [3, 3])},
    )


@pytest.mark.parametrize("of", [lambda table: table, Summary.of])
def test_what_is_not_finite_is_counted_and_thresholds_are_of_the_others(of):
    table = of(ragged())
    facts = {"not_finite": 2, "of": 10, "layers": [5]}
    assert not_finite(table) == {"ahon": facts}
    cuts = thresholds(table, [0.5])
    assert cuts["ahon"].attrs == facts
    assert not cuts["awft"].attrs
    # Of 1, 2, 3, 5, 7, 8, 9, 10 (4 is NaN, 11 infinite): 5 is the fourth of eight.
    assert cuts["ahon"].item() == pytest.approx(5, rel=5e-4)


def test_a_layer_that_is_nowhere_finite_is_no_padding():
    table = ragged()
    table["awft"][:, 1], table["ahon"][:, 1] = np.nan, np.nan
    assert not_finite(table) == {}  # five places that nothing was measured at
    known = table.assign_attrs(num_attention_heads=[3, 2])
    assert not_finite(known)["awft"] == {"not_finite": 4, "of": 10, "layers": [5]}
    assert not_finite(Summary.of(known)) == not_finite(known)


def test_measuring_says_how_many_heads_layers_have(tiny):
    table = measure_heads(tiny(), [[5, 6, 7]], scores=["awft"])
    assert table.attrs["num_units"] == [8, 8, 8]
    assert not_finite(table) == {}
    broken = table.assign(awft=table["awft"].where(table["layer"] != 1))
    assert said_not_finite("awft", not_finite(broken)["awft"]) == (
        "awft: 8 of 24 values are not finite or not defined, in layer 1; thresholds are of the other 16."
    )


def test_shares_may_be_one_or_an_array_and_are_numbers():
    table = xr.Dataset({"ahon": (("example", "layer", "head"), np.arange(10.0).reshape(1, 2, 5))})
    expected = thresholds(table, [0.1])
    assert thresholds(table, 0.1).identical(expected)
    assert thresholds(table, np.array([0.1])).identical(expected)
    with pytest.raises(InputError, match="shares are numbers"):
        thresholds(table, ["some"])
    with pytest.raises(InputError, match="Thresholds come from a table"):
        thresholds([0.1, 0.2])
