import pytest

from headcount.errors import InputError
from headcount.removal.plan import plan_removal
from headcount.units import LayerUnits, UnitMap, UnitSet


def geometry(heads=6, groups=2, layers=2):
    return UnitMap(
        layers=tuple(
            LayerUnits(index=i, num_attention_heads=heads, num_key_value_heads=groups, head_dim=8)
            for i in range(layers)
        )
    )


def test_a_key_value_head_goes_when_its_whole_group_goes():
    # Heads 0…2 are group 0. Group 1 keeps all three.
    plan = plan_removal(geometry(), [(0, 0), (0, 1), (0, 2)], uneven="index")
    layer, other = plan.layers
    assert (layer.query, layer.key_value, layer.index, layer.group_size) == ((3, 4, 5), (1,), None, 3)
    assert other.unchanged
    assert plan.key_value_heads == (4, 3)
    assert plan.uniform is None


def test_groups_that_lose_equally_need_no_solution():
    plan = plan_removal(geometry(layers=1), [(0, 1), (0, 3)], uneven="repeat")
    (layer,) = plan.layers
    assert (layer.query, layer.key_value, layer.index, layer.group_size) == ((0, 2, 4, 5), (0, 1), None, 2)
    assert plan.uniform == (4, 2)


def test_uneven_groups_by_index():
    # Group 0 keeps 0 and 2, group 1 keeps 3, 4, 5.
    plan = plan_removal(geometry(layers=1), [(0, 1)], uneven="index")
    (layer,) = plan.layers
    assert (layer.query, layer.key_value, layer.index, layer.group_size) == (
        (0, 2, 3, 4, 5),
        (0, 1),
        (0, 0, 1, 1, 1),
        1,
    )
    assert plan.uniform is None


def test_uneven_groups_by_repeating():
    # Sizes 2 and 3 have no common divisor but 1: five key-value heads, one for each query head.
    plan = plan_removal(geometry(layers=1), [(0, 1)], uneven="repeat")
    (layer,) = plan.layers
    assert (layer.query, layer.key_value, layer.group_size) == ((0, 2, 3, 4, 5), (0, 0, 1, 1, 1), 1)
    # Sizes 2 and 4 (of 4): pairs, so three key-value heads.
    plan = plan_removal(geometry(heads=8, layers=1), [(0, 0), (0, 3)], uneven="repeat")
    (layer,) = plan.layers
    assert (layer.query, layer.key_value, layer.group_size) == ((1, 2, 4, 5, 6, 7), (0, 1, 1), 2)


def test_uneven_groups_by_keeping_the_most_needed():
    # Group 0 loses 2 and 0, group 1 loses 4: sizes 1 and 2. One head of group 0 stays: 0, which comes last.
    plan = plan_removal(geometry(layers=1), [(0, 2), (0, 4), (0, 0)], uneven="keep")
    (layer,) = plan.layers
    assert (layer.query, layer.key_value, layer.group_size) == ((0, 1, 3, 5), (0, 1), 2)
    assert plan.removed == UnitSet([(0, 2), (0, 4)])
    assert plan.kept_after_all == UnitSet([(0, 0)])


def test_a_layer_can_lose_all_heads_and_the_model_cannot():
    plan = plan_removal(geometry(), [(1, head) for head in range(6)], uneven="index")
    assert plan.emptied == [1]
    assert plan.layers[1].key_value == ()
    with pytest.raises(InputError, match="All 12 heads"):
        plan_removal(geometry(), [(layer, head) for layer in (0, 1) for head in range(6)], uneven="index")


def test_bad_input():
    with pytest.raises(InputError, match="Query head 6 of layer 0 does not exist"):
        plan_removal(geometry(), [(0, 6)], uneven="index")
    with pytest.raises(InputError, match="'index', 'repeat' or 'keep', not 'split'"):
        plan_removal(geometry(), [(0, 0)], uneven="split")  # pyright: ignore
