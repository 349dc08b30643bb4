"""A table is understood by what it says of scores that nobody registered here."""

import numpy as np
import pytest
import xarray as xr

from headcount.analysis import head_frequency, score_agreement, threshold_transfer
from headcount.errors import InputError
from headcount.report.head_map import head_maps
from headcount.report.plot import head_map
from headcount.scores import SCORE_FACTS, ScoreFacts, facts_of, inactive_when
from headcount.summaries import Summary
from headcount.thresholding import thresholds

FACTS = {
    name: ScoreFacts(id=name, name=f"the {name}", inactive_when=side, unit="m", source="of mine")
    for name, side in (("theirs_low", "low"), ("theirs_high", "high"))
}


@pytest.fixture
def theirs():
    """A table of two scores that no file registered here, one inactive when low and one when high."""
    values = np.arange(24, dtype="f4").reshape(4, 2, 3)
    return xr.Dataset(
        dict.fromkeys(FACTS, (("example", "layer", "head"), values)),
        coords={"layer": [0, 1], "head": range(3), "num_tokens": ("example", [1, 2, 3, 4])},
        attrs={SCORE_FACTS: FACTS},
    )


@pytest.mark.parametrize("form", [lambda table: table, Summary.of])
def test_thresholds_and_frequencies_go_by_the_side_that_the_table_names(theirs, form):
    table = form(theirs)
    cuts = thresholds(table, [0.25])
    # Of 0 … 23 a quarter is below 6 or above 17: the whole first or the whole last example.
    assert cuts["theirs_low"].item() < 7
    assert cuts["theirs_high"].item() > 16
    often = head_frequency(table, cuts)
    for name in FACTS:
        np.testing.assert_allclose(often[name].mean(), 0.25, atol=0.05)
    assert (
        threshold_transfer({"a": table, "b": table}, {"a": cuts, "b": cuts})["share_inactive"].between(0.2, 0.3).all()
    )


def test_agreement_and_the_page_and_figures_go_by_it_too(theirs):
    found = score_agreement(theirs, thresholds(theirs, [0.25]))["iou"]
    assert found.sel(score="theirs_low", other="theirs_high").item() == 0  # opposite ends
    facts, packed = head_maps(theirs)
    assert [entry["inactive_when"] for entry in facts["scores"]] == ["low", "high"]
    assert facts["scores"][0]["name"] == "the theirs_low"
    assert set(packed) == set(FACTS)
    assert head_map(theirs, "theirs_high", share=0.1).figure is not None


def test_what_is_registered_wins_and_what_nobody_knows_is_refused(theirs):
    lying = theirs.rename(theirs_high="awft").assign_attrs(
        {SCORE_FACTS: {"awft": ScoreFacts(id="awft", name="x", inactive_when="low", unit="1", source="x")}}
    )
    assert inactive_when("awft", lying) == "high"
    assert facts_of("theirs_low", lying) is None
    with pytest.raises(InputError, match="Unknown score 'theirs_low': nothing says when it is inactive"):
        thresholds(lying)
