import numpy as np
import pytest

from headcount.errors import InputError
from headcount.units import KINDS, LayerUnits, UnitMap, UnitSet


def layer(index: int, heads: int, groups: int = 1) -> LayerUnits:
    return LayerUnits(index=index, num_attention_heads=heads, num_key_value_heads=groups, head_dim=4)


# A hybrid model: layer 1 has no attention, layer 2 has fewer heads.
HYBRID = UnitMap(layers=(layer(0, 4, 2), layer(2, 2)))


def test_group_size_is_query_heads_per_key_value_head():
    assert [layer(0, 8, groups).group_size for groups in (8, 4, 2, 1)] == [1, 2, 4, 8]


def test_geometry_counts_what_each_layer_has():
    assert HYBRID.layer_indices == [0, 2]
    assert HYBRID.most_units == 4
    assert HYBRID.num_units == 4 + 2
    np.testing.assert_array_equal(HYBRID.exists(), [[True, True, True, True], [True, True, False, False]])


#: Heads 0 and 2 share key-value head 0, heads 1, 3 and 4 the other.
UNEVEN = LayerUnits(index=0, num_attention_heads=5, num_key_value_heads=2, head_dim=4, key_value_index=(0, 1, 0, 1, 1))


def test_units_are_made_of_query_heads():
    assert layer(0, 4, 2).members("head") == [(0,), (1,), (2,), (3,)]
    assert layer(0, 4, 2).members("group") == [(0, 1), (2, 3)]
    assert layer(0, 4, 2).members("attention") == [(0, 1, 2, 3)]
    assert UNEVEN.members("group") == [(0, 2), (1, 3, 4)]
    for kind in KINDS:  # every head is in one unit
        assert sorted(head for unit in UNEVEN.members(kind) for head in unit) == list(range(5))


def test_a_unit_has_the_mean_of_its_heads_or_the_most_active_one():
    nan = float("nan")
    # [input, layer, head]: layer 0 has groups {0, 1} and {2, 3}, layer 2 one of its two heads.
    values = np.array([[[1, 2, 3, 5], [4, 8, nan, nan]], [[1, nan, 0, 2], [6, 6, nan, nan]]], np.float32)
    mean = [[[1.5, 4], [6, nan]], [[nan, 1], [6, nan]]]
    np.testing.assert_array_equal(HYBRID.reduce(values, "group"), mean)
    np.testing.assert_array_equal(HYBRID.reduce(values, "head"), values)
    np.testing.assert_array_equal(HYBRID.reduce(values, "attention")[..., 0], [[2.75, 6], [nan, 6]])
    # Inactive when low: the highest is the farthest from it.
    highest = [[[2, 5], [8, nan]], [[nan, 2], [6, nan]]]
    np.testing.assert_array_equal(HYBRID.reduce(values, "group", "most_active"), highest)
    lowest = [[[1, 3], [4, nan]], [[nan, 0], [6, nan]]]
    np.testing.assert_array_equal(HYBRID.reduce(values, "group", "most_active", inactive_when="high"), lowest)
    uneven = UnitMap(layers=(UNEVEN,))
    np.testing.assert_array_equal(uneven.reduce(np.array([[3.0, 1, 5, 2, 6]]), "group"), [[4, 3]])


def test_a_head_set_is_sorted_distinct_and_compares_by_content():
    heads = UnitSet([(2, 1), (0, 3), (2, 1)])
    assert list(heads) == [(0, 3), (2, 1)]
    assert len(heads) == 2
    assert repr(heads) == "UnitSet([(0, 3), (2, 1)])"
    assert heads == UnitSet([[0, 3], [2, 1]])
    assert hash(heads) == hash(UnitSet([(0, 3), (2, 1)]))
    assert heads != UnitSet([(0, 3)])
    assert len(UnitSet()) == 0


def test_membership_and_union():
    heads = UnitSet([(0, 3)]) | UnitSet([(1, 0), (0, 3)])
    assert (1, 0) in heads
    assert (0, 1) not in heads
    assert "anything" not in heads
    assert heads == UnitSet([(0, 3), (1, 0)])


def test_numpy_integers_become_plain_ones():
    (pair,) = UnitSet(np.argwhere(np.array([[False, False], [False, True]])))
    assert pair == (1, 1)
    assert all(type(number) is int for number in pair)


@pytest.mark.parametrize("wrong", [3, (1,), (1, 2, 3), (0, "a"), (0, None), (0, 1.5), ("0", "3"), "03"])
def test_what_is_not_a_pair_of_whole_numbers_is_refused(wrong):
    with pytest.raises(InputError, match=r"A head is a pair \(layer, head\) of whole numbers, not "):
        UnitSet([(0, 0), wrong])


def test_check_accepts_the_models_heads():
    UnitSet([(0, 0), (0, 3), (2, 1)]).check(HYBRID)
    UnitSet().check(HYBRID)


@pytest.mark.parametrize("missing", [(0, 4), (2, 2), (1, 0), (3, 0), (-1, 0), (0, -1)])
def test_check_refuses_heads_that_do_not_exist(missing):
    with pytest.raises(InputError, match=f"Query head {missing[1]} of layer {missing[0]} does not exist") as raised:
        UnitSet([(0, 0), missing]).check(HYBRID)
    assert "0…2 with up to 4 query heads" in str(raised.value)
    assert "from 0" in str(raised.value)
