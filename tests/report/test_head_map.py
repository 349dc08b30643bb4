import base64
import gzip

import numpy as np
import xarray as xr

from headcount.report.head_map import ALWAYS, HALF, NOT_MEASURED, STEPS, head_maps, head_profile
from headcount.thresholding import thresholds
from headcount.units import LayerUnits
from tests.report.conftest import make_scores

DIMS = ("example", "layer", "head")


def one(name, values, layer=(3,)):
    return xr.Dataset({name: (DIMS, np.asarray(values, dtype="f4"))}, coords={"layer": list(layer)})


def test_profile_by_hand():
    # One layer, four inputs. Head 0: 1, 2, 3, 4. Head 1: 1, 1, 1, not measured. Head 2 does not exist.
    nan = np.nan
    values = [[[1, 1, nan]], [[2, 1, nan]], [[3, 1, nan]], [[4, nan, nan]]]
    profile = head_profile(one("ahon", values), "ahon")
    np.testing.assert_array_equal(profile.mean, [[2.5, 1.0, nan]])
    np.testing.assert_array_equal(profile.low, [[1.0, 1.0, nan]])
    np.testing.assert_array_equal(profile.median, [[2.5, 1.0, nan]])
    np.testing.assert_array_equal(profile.high, [[4.0, 1.0, nan]])
    # Deciles of head 0 are values at ranks floor(3 · k/10) of 1, 2, 3, 4; head 1 has one value throughout.
    assert profile.deciles[0, 0].tolist() == [0, 0, 0, 85, 85, 85, 169, 169, 169]  # thirds of 254
    assert profile.deciles[0, 1].tolist() == [0] * 9
    assert profile.deciles[0, 2].tolist() == [NOT_MEASURED] * 9
    # The seven values sorted: 1 1 1 1 2 3 4. At share 1 the threshold is 4: head 0 is below it on 3 of 4 inputs
    # (254 · 3/4 = 190.5, to the even neighbour), head 1 on all of its three.
    assert profile.thresholds[0] == 1.0
    assert profile.thresholds[-1] == 4.0
    assert profile.often[0, :, -1].tolist() == [190, ALWAYS, NOT_MEASURED]
    assert profile.often[0, :, 0].tolist() == [0, 0, NOT_MEASURED]  # nothing is strictly below the smallest value


def test_often_is_a_plain_count_at_every_step():
    table = make_scores(["ahon_ln", "awft"])
    for name, beyond in (("ahon_ln", np.less), ("awft", np.greater)):
        profile = head_profile(table, name)
        shares = np.arange(STEPS + 1) / STEPS
        cuts = thresholds(table[[name]], shares.tolist())[name].to_numpy()
        np.testing.assert_array_equal(profile.thresholds, cuts)
        values = table[name].to_numpy().astype(float)
        exists = ~np.isnan(values[0])
        for step in range(STEPS + 1):
            part = beyond(values, cuts[step]).mean(axis=0)[exists]
            code = profile.often[..., step][exists]
            np.testing.assert_allclose(code / ALWAYS, part, atol=1 / ALWAYS)
            np.testing.assert_array_equal(code == 0, part == 0)
            np.testing.assert_array_equal(code == ALWAYS, part == 1)
            np.testing.assert_array_equal(code >= HALF, part >= 0.5)
            assert (profile.often[..., step][~exists] == NOT_MEASURED).all()


def test_half_of_many_inputs_is_told_from_just_less():
    # 999 and 1000 of 2000 inputs below the threshold: both are 127 of 254 parts when rounded.
    values = np.ones((2000, 1, 2))
    values[:999, 0, 0] = 0.0
    values[:1000, 0, 1] = 0.0
    often = head_profile(one("ahon", values), "ahon").often[0]
    assert often[:, -1].tolist() == [HALF - 1, HALF]


def test_packed_profile_comes_back():
    table = make_scores(["ahon_ln"])
    profile = head_profile(table, "ahon_ln")
    content = gzip.decompress(base64.b64decode(profile.packed()))
    cells = profile.mean.size
    planes = np.frombuffer(content[: 16 * cells], np.uint8).reshape(4, 4 * cells)
    numbers = np.ascontiguousarray(planes.T).view("<f4").reshape(4, *profile.mean.shape)
    np.testing.assert_array_equal(numbers, [profile.mean, profile.low, profile.median, profile.high])
    deciles = np.frombuffer(content[16 * cells : 25 * cells], np.uint8)
    np.testing.assert_array_equal(deciles, profile.deciles.ravel())
    steps = np.frombuffer(content[25 * cells :], np.uint8).reshape(profile.often.shape)
    np.testing.assert_array_equal(np.cumsum(steps, axis=-1, dtype=np.uint8), profile.often)


def test_facts_of_the_map():
    layers = [LayerUnits(index=5, num_attention_heads=4, num_key_value_heads=2, head_dim=8)]
    facts, packed = head_maps(one("ahon", np.ones((2, 2, 4)), layer=(5, 7)), layers)
    assert facts["layers"] == [5, 7]
    assert facts["groups"] == [2, 1]  # two query heads a key-value head in layer 5; nothing is known of layer 7
    assert facts["scores"][0]["inactive_when"] == "low"
    assert list(packed) == ["ahon"]


def test_a_score_that_was_measured_nowhere_is_left_out():
    table = make_scores(["ahon", "lthon"])
    table["ahon"][:] = np.nan
    assert [entry["score"] for entry in head_maps(table)[0]["scores"]] == ["lthon"]


def test_an_unknown_score_has_no_side():
    facts, _ = head_maps(make_scores(["mine"]))
    assert facts["scores"][0]["inactive_when"] == ""


def test_groups_of_several_sizes_name_each_heads():
    layers = [
        LayerUnits(index=5, num_attention_heads=3, num_key_value_heads=2, head_dim=8, key_value_index=(0, 1, 1)),
        LayerUnits(index=7, num_attention_heads=4, num_key_value_heads=2, head_dim=8),
    ]
    facts, _ = head_maps(one("ahon", np.ones((2, 2, 4)), layer=(5, 7)), layers)
    assert facts["groups"] == [[0, 1, 1, 1], 2]  # the last stands for no head
