import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba

import headcount as hc
from headcount.errors import InputError
from headcount.report.plot.paper import OFF
from headcount.units import LayerUnits, UnitMap
from tests.report.conftest import HEADS, LAYERS, make_scores


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def boxes(ax):
    """Colour of each drawn head by the place of its upper left corner."""
    collection = ax.collections[0]
    corners = [tuple(np.round(path.vertices.min(axis=0) - 0.04, 6)) for path in collection.get_paths()]
    return dict(zip(corners, map(tuple, collection.get_facecolors()), strict=True))


def test_colours_are_the_means_and_grey_those_inactive_on_half_of_the_inputs():
    table = make_scores(["ahon_ln", "awft"])
    for score, sign in (("ahon_ln", 1), ("awft", -1)):
        drawn = boxes(hc.plot.head_map(table, score, share=0.2))
        assert len(drawn) == LAYERS * HEADS - 1  # the last layer lacks a head
        values = table[score].to_numpy().astype(float)
        cut = hc.thresholds(table[[score]], [0.2])[score].item()
        inactive = (sign * values < sign * cut).mean(axis=0) >= 0.5
        means = values.mean(axis=0)
        low, high = np.nanquantile(means, [0.01, 0.99])
        colours = mpl.colormaps["viridis" if sign == 1 else "viridis_r"]
        for (layer, head), colour in drawn.items():
            at = int(layer), int(head)
            expected = to_rgba(OFF) if inactive[at] else colours(np.clip((means[at] - low) / (high - low), 0, 1))
            np.testing.assert_allclose(colour, expected, atol=1e-6)


def test_nothing_is_grey_without_a_share():
    assert to_rgba(OFF) not in boxes(hc.plot.head_map(make_scores(["ahon_ln"]), "HONOR")).values()


def test_groups_stand_apart():
    layer = LayerUnits(index=0, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    table = make_scores(["ahon"]).isel(layer=[0], head=slice(4))
    tops = sorted(top for _, top in boxes(hc.plot.head_map(table, "ahon", units=UnitMap(layers=(layer,)))))
    np.testing.assert_allclose(tops, [0, 1, 2.25, 3.25])


def test_what_cannot_be_drawn_is_named():
    table = make_scores(["ahon"])
    with pytest.raises(InputError, match="awft is not in this table"):
        hc.plot.head_map(table, "awft")
    with pytest.raises(InputError, match="give share=0.10"):
        hc.plot.head_map(table, "ahon", often=True)
    with pytest.raises(InputError, match="Unknown score"):
        hc.plot.head_map(table, "nothing")


def test_distributions_are_quantiles_with_thresholds():
    table = make_scores(["ahon_ln", "awft"])
    axes = hc.plot.distributions(table, columns=3)
    assert axes.shape == (1, 3)
    assert not axes[0, 2].get_visible()
    for ax, score in zip(axes[0], ("ahon_ln", "awft"), strict=False):
        curve, marks = ax.lines
        values = table[score].to_numpy()
        for x, y in list(zip(*curve.get_data(), strict=True))[::20]:
            assert np.nanmean(np.where(np.isnan(values), np.nan, values <= x)) == pytest.approx(y, abs=1e-3)
        np.testing.assert_allclose(marks.get_xdata(), hc.thresholds(table[[score]], [0.1, 0.2, 0.3])[score])
        assert ax.get_title() == score
    with pytest.raises(InputError, match="no measured score"):
        hc.plot.distributions(table * np.nan)
