import numpy as np
import pandas as pd
import pytest

from headcount.analysis import Look, SequentialTest, decided_shares, find_removable_share
from headcount.errors import InputError
from headcount.published import published_points


def exact(curve):
    """An oracle that knows the curve."""

    def ask(share):
        change = curve(share)
        return Look(change=change, verdict="within" if change >= -0.01 else "beyond", share_realised=share)

    return ask


def test_a_straight_line_by_hand():
    # Falls by a point at 0.1. Ends: 0.01 above the line at 0, 0.02 below at 0.3: crosses at 0.1, which is on the margin. Then
    # nothing is left above, so a tenth of the way up from 0.1 to 0.3, and half the resolution up from 0.1 to 0.12.
    found = find_removable_share(exact(lambda share: -0.1 * share + 1e-9))
    assert [share for share, _ in found.looks] == pytest.approx([0.3, 0.1, 0.12, 0.105], abs=1e-6)
    assert (found.within, found.beyond) == pytest.approx((0.1, 0.105), abs=1e-6)


def test_a_curve_that_never_falls_takes_one_look():
    found = find_removable_share(exact(lambda share: 0.0))
    assert (found.within, found.beyond, len(found.looks)) == (0.30, None, 1)


def test_a_curve_that_falls_at_once_is_pinned_down_near_0():
    found = find_removable_share(exact(lambda share: -1.0))
    assert found.within == 0
    assert found.beyond is not None
    assert found.beyond <= 0.01 + 1e-9


def test_what_is_undecided_is_not_within():
    found = find_removable_share(lambda share: Look(change=-0.001, verdict=None, share_realised=share), resolution=0.05)
    assert found.within == 0
    assert all(look.verdict is None for _, look in found.looks)


def test_published_curves_take_fewer_looks_than_bisection():
    # Bisection from 0.3 to 0.01 takes 1 + 5 looks wherever the curve falls.
    counts = []
    for _, points in published_points().groupby(["model", "curve"]):
        points = points.sort_values("share_asked")
        x, y = points["share_asked"].to_numpy(), (points["accuracy"] - points["baseline"]).to_numpy()
        found = find_removable_share(exact(lambda share, x=x, y=y: float(np.interp(share, x, y))))
        assert np.interp(found.within, x, y) >= -0.01 or found.within == 0
        assert found.beyond - found.within <= 0.01 + 1e-9
        counts.append(len(found.looks))
    assert np.mean(counts) == pytest.approx(4.14, abs=0.01)
    assert max(counts) <= 9


def test_noisy_looks_err_as_rarely_as_promised():
    # 3,000 questions; at share x a part x² / 4 of them is lost on top of 1% lost and 1% gained: a point at 0.2. Each look asks
    # until decided at 99%; with at most 8 looks at least 92% of the searches have a point between their ends.
    rng = np.random.default_rng(0)
    asked, searches = [], 60

    def lost_at(share):
        return round(3000 * (0.01 + share**2 / 4))

    def ask(share):
        lost = lost_at(share)
        differences = rng.permutation(np.repeat([1.0, -1.0, 0.0], [30, lost, 3000 - 30 - lost]))
        test = SequentialTest(total=3000, confidence=0.99)
        while test.update(differences[test.num_asked : test.num_asked + 300]) is None:
            pass
        asked.append(test.num_asked)
        return Look(change=test.change, verdict=test.verdict, share_realised=share)

    right = 0
    for _ in range(searches):
        found = find_removable_share(ask, resolution=0.02)
        right += lost_at(found.within) <= 60 < lost_at(found.beyond)
        assert len(found.looks) <= 8
    assert right / searches >= 0.92
    assert np.mean(asked) < 0.9 * 3000  # looks come close to the margin, where most questions are needed


def test_between_which_shares_the_removable_share_lies():
    table = pd.DataFrame(
        [
            ("a", 0.3, 0.25, "beyond", 64), ("a", 0.1, 0.09, "within", 128), ("a", 0.2, 0.17, None, 200),
            ("b", 0.1, 0.1, "within", 64), ("c", 0.1, 0.1, "beyond", 64), ("c", 0.2, 0.2, "within", 64),
        ],
        columns=["curve", "share_asked", "share_realised", "verdict", "num_questions"],
    )  # fmt: skip
    rows = decided_shares(table).set_index("curve")
    ends = ["within", "beyond", "within_realised", "beyond_realised"]
    assert rows.loc["a", ends].tolist() == [0.1, 0.2, 0.09, 0.17]  # what is not decided is not within
    assert rows.loc["a", ["looks", "num_questions"]].tolist() == [3, 392]
    assert rows.loc["b", ["within", "within_realised"]].tolist() == [0.1, 0.1]
    assert rows.loc["b", ["beyond", "beyond_realised"]].isna().all()
    assert rows.loc["c", ends].tolist() == [0, 0.1, 0, 0.1]  # a curve that comes back has not stayed within


@pytest.mark.parametrize("wrong", [{"margin": -1}, {"largest": 0}, {"largest": 30}, {"resolution": 0}])
def test_a_search_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(InputError, match="A search takes"):
        find_removable_share(exact(lambda share: 0.0), **wrong)


def test_a_look_without_a_change_is_refused():
    with pytest.raises(InputError, match="no question was answered"):
        find_removable_share(lambda share: Look(change=float("nan"), verdict=None, share_realised=share))
