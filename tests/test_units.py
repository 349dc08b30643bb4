import numpy as np
import pytest

from headcount.errors import InputError
from headcount.units import LayerUnits, UnitMap, UnitSet


def layer(index: int, heads: int, groups: int = 1) -> LayerUnits:
    return LayerUnits(index=index, num_attention_heads=heads, num_key_value_heads=groups, head_dim=4)


# A hybrid model: layer 1 has no attention, layer 2 has fewer heads.
HYBRID = UnitMap(layers=(layer(0, 4, 2), layer(2, 2)))


def test_group_size_is_query_heads_per_key_value_head():
    assert [layer(0, 8, groups).group_size for groups in (8, 4, 2, 1)] == [1, 2, 4, 8]


def test_geometry_counts_what_each_layer_has():
    assert HYBRID.layer_indices == [0, 2]
    assert HYBRID.max_attention_heads == 4
    assert HYBRID.num_heads == 4 + 2
    np.testing.assert_array_equal(HYBRID.exists(), [[True, True, True, True], [True, True, False, False]])


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
    with pytest.raises(InputError, match=f"Head {missing[1]} of layer {missing[0]} does not exist") as raised:
        UnitSet([(0, 0), missing]).check(HYBRID)
    assert "0…2 with up to 4 query heads" in str(raised.value)
    assert "from 0" in str(raised.value)
