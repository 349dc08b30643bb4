import numpy as np
import pytest
import xarray as xr

from headcount.analysis import inactivity
from headcount.analysis.inactivity import frequency_table, group_frequency, head_frequency
from headcount.errors import InputError
from headcount.units import LayerUnits, UnitMap

NAN = float("nan")


def table(**scores):
    """Scores, each [example][layer][head]."""
    values = {name: (("example", "layer", "head"), np.asarray(rows, dtype=np.float32)) for name, rows in scores.items()}
    shape = next(iter(values.values()))[1].shape
    return xr.Dataset(values, coords={"layer": np.arange(shape[1]), "head": np.arange(shape[2])})


def cuts(share, **thresholds):
    return xr.Dataset({name: ("share", values) for name, values in thresholds.items()}, coords={"share": share})


def units(*counts):
    layers = [
        LayerUnits(index=i, num_attention_heads=q, num_key_value_heads=kv, head_dim=8)
        for i, (q, kv) in enumerate(counts)
    ]
    return UnitMap(layers=tuple(layers))


@pytest.fixture
def scores():
    # Two inputs, two layers of four query heads in two groups; the second layer has only two heads, in one group.
    return table(
        ahon=[[[1, 2, 3, 4], [1, 9, NAN, NAN]], [[2, 2, 1, 9], [2, 2, NAN, NAN]]],
        awft=[[[0.9, 0.1, 0.8, 0.8], [0.9, 0.9, NAN, NAN]], [[0.1, 0.1, 0.8, 0.2], [NAN, 0.9, NAN, NAN]]],
    )


def test_frequencies_by_hand(scores):
    found = head_frequency(scores, cuts([0.1, 0.5], ahon=[2, 4], awft=[0.85, 0.5], aeqd=[1, 1]))
    assert set(found.data_vars) == {"ahon", "awft"}
    # Low: strictly below 2 (the 2s are not), then below 4.
    np.testing.assert_array_equal(found["ahon"].sel(share=0.1), [[0.5, 0, 0.5, 0], [0.5, 0, NAN, NAN]])
    np.testing.assert_array_equal(found["ahon"].sel(share=0.5), [[1, 1, 1, 0], [1, 0.5, NAN, NAN]])
    # High: above 0.85; head 0 of layer 1 was measured on one input alone.
    np.testing.assert_array_equal(found["awft"].sel(share=0.1), [[0.5, 0, 0, 0], [1, 1, NAN, NAN]])


def test_groups_are_inactive_when_all_their_heads_are(scores):
    found = group_frequency(scores, cuts([0.5], ahon=[4], awft=[0.5]), units((4, 2), (2, 1)))
    # ahon below 4. Layer 0: heads 0, 1 on both inputs, heads 2, 3 on none. Layer 1: heads 0, 1 on the second.
    np.testing.assert_array_equal(found["ahon"].sel(share=0.5), [[1, 0], [0.5, NAN]])
    # awft above 0.5. Layer 0: heads 2, 3 on the first. Layer 1: on the first; the second, unmeasured, does not count.
    np.testing.assert_array_equal(found["awft"].sel(share=0.5), [[0, 0.5], [1, NAN]])


def test_groups_of_several_sizes(scores):
    shared = LayerUnits(index=0, num_attention_heads=4, num_key_value_heads=2, head_dim=8, key_value_index=(0, 1, 1, 1))
    layers = (shared, units((4, 2), (2, 1)).layers[1])
    found = group_frequency(scores, cuts([0.5], ahon=[4], awft=[0.5]), UnitMap(layers=layers))
    # Layer 0: head 0 alone is below 4 on both inputs, heads 1 to 3 together on none.
    np.testing.assert_array_equal(found["ahon"].sel(share=0.5), [[1, 0], [0.5, NAN]])
    # awft above 0.5: head 0 on the first input; heads 1 to 3 never all.
    np.testing.assert_array_equal(found["awft"].sel(share=0.5), [[0.5, 0], [1, NAN]])


def test_one_head_a_group_is_head_frequency(scores):
    thresholds = cuts([0.5], ahon=[4])
    found = group_frequency(scores, thresholds, units((4, 4), (2, 2)))
    np.testing.assert_array_equal(found["ahon"], head_frequency(scores, thresholds)["ahon"])


def test_always_sometimes_never(scores):
    thresholds = cuts([0.5], ahon=[4])
    counts = frequency_table(
        head_frequency(scores, thresholds), group_frequency(scores, thresholds, units((4, 2), (2, 1)))
    )
    # Heads: 1, 1, 1, 0 and 1, 0.5. Groups: 1, 0 and 0.5.
    assert counts.to_dict("records") == [{
        "score": "ahon", "share": 0.5, "heads": 6, "always": 4, "sometimes": 1, "never": 1, "mean_inactive": 4.5,
        "groups": 3, "groups_always": 1, "groups_sometimes": 1, "groups_never": 1, "groups_mean_inactive": 1.5,
    }]  # fmt: skip
    assert "groups" not in frequency_table(head_frequency(scores, thresholds))


def test_chunks_do_not_matter(monkeypatch):
    rng = np.random.default_rng(0)
    many = table(ahon=rng.random((23, 3, 4)), awft=rng.random((23, 3, 4)))
    thresholds = cuts([0.1, 0.3], ahon=[0.1, 0.3], awft=[0.9, 0.7])
    at_once = head_frequency(many, thresholds), group_frequency(many, thresholds, units(*[(4, 2)] * 3))
    monkeypatch.setattr(inactivity, "_CELLS_A_CHUNK", 60)  # 5 inputs at a time
    xr.testing.assert_equal(head_frequency(many, thresholds), at_once[0])
    xr.testing.assert_equal(group_frequency(many, thresholds, units(*[(4, 2)] * 3)), at_once[1])


def test_errors_say_what_to_do(scores):
    with pytest.raises(InputError, match="ahon, awft was measured, aeqd has thresholds. Run `headcount thresholds`"):
        head_frequency(scores, cuts([0.1], aeqd=[1]))
    with pytest.raises(InputError, match=r"has layers \[0\], the scores \[0, 1\]"):
        group_frequency(scores, cuts([0.1], ahon=[1]), units((4, 2)))


@pytest.mark.parametrize("value", [NAN, np.inf, -np.inf])
@pytest.mark.parametrize("score", ["ahon", "awft"])
def test_what_is_not_finite_counts_neither_for_heads_nor_for_groups(scores, score, value):
    broken = scores.copy(deep=True)
    broken[score][0, 0, 0] = value
    thresholds = cuts([0.5], ahon=[4], awft=[0.5])
    heads = head_frequency(broken, thresholds)[score]
    assert heads[0, 0, 0] == head_frequency(scores.isel(example=[1]), thresholds)[score][0, 0, 0]
    xr.testing.assert_equal(
        heads, group_frequency(broken, thresholds, units((4, 4), (4, 4)))[score].rename(group="head")
    )
    pair = group_frequency(broken, thresholds, units((4, 2), (2, 1)))[score]
    alone = group_frequency(scores.isel(example=[1]), thresholds, units((4, 2), (2, 1)))[score]
    assert pair[0, 0, 0] == alone[0, 0, 0]
