"""A run that kept a summary instead of every score has a page too."""

import numpy as np
import pytest

from headcount.report import read_results, render_page
from headcount.report.results import Report
from headcount.report.sections import result_tables
from headcount.store import begin_run
from headcount.summaries import Summary
from headcount.thresholding import thresholds
from tests.report.conftest import INPUTS, make_scores, manifest
from tests.report.test_page import data_of, text_of

IDS = ["ahon_ln", "awft"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    facts = manifest()
    settings = {"seed": 0, "summaries": True}
    with begin_run(
        tmp_path_factory.mktemp("run") / "run", model=facts["model"], data=facts["data"], settings=settings
    ) as run:
        run.add_summary(0, Summary.of(make_scores(IDS)))
    return read_results(run)


def test_thresholds_and_frequencies_are_those_of_the_scores(results):
    table = make_scores(IDS)
    assert results.num_inputs == INPUTS
    exact = thresholds(table)
    np.testing.assert_allclose(results.cuts["awft"], exact["awft"], rtol=2.0**-10)
    values = table["ahon_ln"].to_numpy().astype(float)
    part = (values < exact["ahon_ln"].sel(share=0.1).item()).mean(axis=0)
    found = results.tables.frequency["ahon_ln"].sel(share=0.1).to_numpy()
    exists = ~np.isnan(values[0])
    # A bin of 1.6% holds at most 4 of the 40 values near a threshold here.
    np.testing.assert_allclose(found[exists], part[exists], atol=0.1)
    assert abs(found[exists] - part[exists]).mean() < 0.01


def test_what_a_summary_does_not_hold_is_left_out_and_said(results):
    page = render_page([results])
    assert data_of(page)["heads"]["inputs"] == INPUTS
    assert data_of(page)["agreement"] is None
    assert "This run kept a summary" in text_of(page)
    tables = {table.id: table for table in result_tables(Report([results]))}
    assert "agreement" not in tables
    assert "groups" not in tables["inactive-heads"].frame
