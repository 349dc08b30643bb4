"""Runs of earlier formats are read with today's names, and continued."""

import pandas as pd
import pytest

from headcount.store import begin_run, open_run
from tests.store.parts import FACTS, forge, outcomes

#: As they were called up to format 3.
OLD = {"share_off": "share_zeroed", "heads_off": "zeroed_heads"}


@pytest.fixture
def run_of_format_3(tmp_path):
    """With answers of the untouched model and of one policy, as headcount wrote them then."""
    with begin_run(tmp_path / "run", command="headcount test", **FACTS) as run:
        for name, score in (("baseline", ""), ("ahon_ln:0.1", "ahon_ln")):
            given = outcomes(name).assign(score=score, heads_off=[[[0, 1]], None, [[1, 2], [3, 4]]])
            run.add_outcomes([name], [0, 1, 2], given.rename(columns=OLD).drop(columns="curve"))
        policies = [{"policy": "baseline", "score": ""}, {"policy": "ahon_ln:0.1", "score": "ahon_ln"}]
        run.update(policies=policies)
    forge(run.path / "run.json", lambda facts: facts | {"format": 3, "policies": policies})
    return run.path


def test_its_outcomes_have_todays_columns(run_of_format_3):
    found = open_run(run_of_format_3).outcomes()
    assert found["share_off"].tolist() == [0.0, 0.5, 1 / 3] * 2
    assert found["curve"].tolist() == [""] * 3 + ["ahon_ln"] * 3
    assert [[list(pair) for pair in heads] for heads in found["heads_off"].dropna()] == [[[0, 1]], [[1, 2], [3, 4]]] * 2
    assert not {*OLD.values()} & {*found.columns}
    some = open_run(run_of_format_3).outcomes(["ahon_ln:0.1"], ["curve", "share_off"])
    assert set(some.columns) == {"share_off", "curve"}


def test_its_policies_name_their_curve(run_of_format_3):
    assert [noted.curve for noted in open_run(run_of_format_3).manifest.policies] == ["", "ahon_ln"]


def test_it_is_continued_in_todays_format(run_of_format_3):
    with begin_run(run_of_format_3, command="headcount test", **FACTS) as run:
        run.add_outcomes(["random:0.1"], [0, 1, 2], outcomes("random:0.1").assign(curve="random", score="random"))
    again = open_run(run_of_format_3)
    assert again.manifest.format == 4
    found = again.outcomes()
    assert isinstance(found, pd.DataFrame)
    assert found.groupby("policy")["share_off"].sum().round(6).unique().tolist() == [0.833333]
    assert set(found["curve"]) == {"", "ahon_ln", "random"}
