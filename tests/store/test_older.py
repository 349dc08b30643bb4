"""Runs of earlier formats are read with today's names, and continued."""

from dataclasses import replace

import pandas as pd
import pytest

from headcount.errors import RunError
from headcount.policies import Fixed, Threshold, parse_policy
from headcount.store import begin_run, open_run
from headcount.store.manifest import curve_of_old
from headcount.study.stages import note_policies
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
    assert again.manifest.format == 5
    found = again.outcomes()
    assert isinstance(found, pd.DataFrame)
    assert found.groupby("policy")["share_off"].sum().round(6).unique().tolist() == [0.833333]
    assert set(found["curve"]) == {"", "ahon_ln", "random"}


@pytest.mark.parametrize(
    ("policy", "score", "curve"),
    [
        ("ahon_ln:0.1", "ahon_ln", "ahon_ln"), ("awft@0.8", "awft", "awft"), ("random:0.1#7", "random", "random"),
        ("ahon_ln:0.1 except layer 0, 2", "ahon_ln", "ahon_ln except layer 0, 2"),
        ("ahon_ln:published/piqa:0.1", "ahon_ln", "ahon_ln:published/piqa"),
        ("ahon_ln:published:0.1 except layer 0", "ahon_ln", "ahon_ln:published except layer 0"),
        ("awft@0.8 except layer 1", "awft", "awft except layer 1"), ("heads", "", ""), ("baseline", "", ""),
    ],
)  # fmt: skip
def test_the_curve_of_an_old_policy_is_that_of_todays(policy, score, curve):
    assert curve_of_old(policy, score) == (curve, score)
    if score and "published" not in policy and "#" not in policy:
        text, _, layers = policy.partition(" except layer ")
        excluded = [int(layer) for layer in layers.split(", ") if layer]
        assert parse_policy(text, exclude_layers=excluded).facts().curve == curve


def test_a_pruned_checkpoint_has_a_curve_and_no_score():
    assert curve_of_old("pruned:smaller", "pruned") == ("pruned", "")


def test_old_policies_with_layers_left_alone_are_continued(tmp_path):
    label = "ahon_ln:0.1 except layer 0"
    with begin_run(tmp_path / "run", command="headcount test", **FACTS) as run:
        given = outcomes(label).assign(score="ahon_ln", share_asked=0.1, threshold=0.5)
        run.add_outcomes([label], [0, 1, 2], given.rename(columns=OLD).drop(columns="curve"))
    noted = [{"policy": label, "score": "ahon_ln", "share_asked": 0.1, "threshold": 0.5}]
    forge(run.path / "run.json", lambda facts: facts | {"format": 3, "policies": noted})
    policy = Threshold("ahon_ln", 0.5, share=0.1, exclude_layers=[0])
    with begin_run(run.path, command="headcount test", **FACTS) as run:
        note_policies(run, [policy.facts()])
        with pytest.raises(
            RunError, match=r"holds ahon_ln:0.1 except layer 0 with threshold 0.5; this command gives 0.6"
        ):
            note_policies(run, [replace(policy, threshold=0.6).facts()])
    assert open_run(run.path).outcomes()["curve"].unique().tolist() == [policy.facts().curve]


def test_other_heads_under_one_name_are_refused(tmp_path):
    with begin_run(tmp_path / "run", command="headcount test", **FACTS) as run:
        note_policies(run, [Fixed([(0, 0)]).facts()])
        note_policies(run, [Fixed([(0, 0)]).facts()])
        with pytest.raises(RunError, match=r"holds fixed with decisions by 1 heads, .*; this command gives 2 heads, "):
            note_policies(run, [Fixed([(0, 0), (1, 1)]).facts()])
