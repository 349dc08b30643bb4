import pytest
import xarray as xr

from headcount.errors import InputError
from headcount.interventions import Random, Threshold
from headcount.policies import PolicyRequest, parse_policy


def request(score, share=None, threshold=None, layers=()):
    return PolicyRequest(score=score, share=share, threshold=threshold, exclude_layers=frozenset(layers))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ahon_ln:0.10", request("ahon_ln", share=0.1)),
        ("AHON_LN:.1", request("ahon_ln", share=0.1)),
        ("HONOR:0", request("ahon_ln", share=0.0)),
        ("dormant:1", request("awft", share=1.0)),
        (" ahon_ln : 0.10 ", request("ahon_ln", share=0.1)),
        ("ahon_ln@0.5", request("ahon_ln", threshold=0.5)),
        ("awft @ 1e-3", request("awft", threshold=0.001)),
        ("awft@-2", request("awft", threshold=-2.0)),
        ("random:0.1", request("random", share=0.1)),
    ],
)
def test_policies_are_read(text, expected):
    assert parse_policy(text) == expected


@pytest.mark.parametrize(
    ("text", "needs"), [("ahon_ln:0.1", True), ("ahon_ln@0.1", False), ("random:0.1", False), ("random@0.1", False)]
)
def test_only_shares_of_measured_scores_need_a_threshold(text, needs):
    assert parse_policy(text).needs_threshold is needs


@pytest.mark.parametrize(
    "text", ["", ":", "@", "ahon_ln", "ahon_ln:", "ahon_ln@", "ahon_ln:10%", "ahon_ln:a", "ahon_ln:0.1:0.2"]
)
def test_another_form_is_refused_with_the_forms(text):
    with pytest.raises(InputError, match=r"is not understood. Write ID:SHARE \(ahon_ln:0.10\), ID@THRESHOLD"):
        parse_policy(text)


@pytest.mark.parametrize("share", ["-0.1", "1.01", "10", "nan", "inf"])
def test_a_share_outside_0_to_1_is_refused(share):
    with pytest.raises(InputError, match=r"between 0 and 1; write 10% as 0.10"):
        parse_policy(f"ahon_ln:{share}")


def test_an_unknown_score_names_the_nearest():
    with pytest.raises(InputError, match=r"Unknown score 'ahonln'\. Did you mean .*ahon_ln"):
        parse_policy("ahonln:0.1")
    with pytest.raises(InputError, match=r"Unknown score ''"):
        parse_policy(":0.1")


def test_a_threshold_that_is_no_number_is_refused():
    with pytest.raises(InputError, match=r"threshold for awft is NaN"):
        parse_policy("awft@nan").resolve(None)


def test_requests_become_policies():
    cuts = xr.Dataset({"ahon_ln": ("share", [0.25, 0.5])}, coords={"share": [0.1, 0.2]})
    assert parse_policy("HONOR:0.2").resolve(cuts) == Threshold("ahon_ln", 0.5, share=0.2)
    assert parse_policy("ahon_ln@0.7").resolve(None) == Threshold("ahon_ln", 0.7)
    assert parse_policy("random:0.1").resolve(None) == Random(0.1)


def test_excluded_layers_go_along():
    for text in ("random:0.1", "awft@0.8"):
        assert parse_policy(text, exclude_layers=[0, 2, 0]).resolve(None).exclude_layers == {0, 2}
    with pytest.raises(InputError, match=r"exclude_layers holds layer indices"):
        parse_policy("random:0.1", exclude_layers=[-1]).resolve(None)


def test_published_thresholds_are_policies():
    policy = parse_policy("HONOR:published:0.15", model="allenai/OLMo-2-1124-7B-Instruct").resolve(None)
    assert isinstance(policy, Threshold)
    assert (policy.score, policy.share) == ("ahon_ln", 0.15)
    assert policy.threshold == pytest.approx(0.457, abs=5e-4)
    assert policy.label == "ahon_ln:published:0.15"
    on_piqa = parse_policy("ahon_ln : Published/piqa : 0.15", model="OLMo-2-1124-7B-Instruct", exclude_layers=[0])
    assert on_piqa.needs_threshold is False
    assert on_piqa.resolve(None).label == "ahon_ln:published/piqa:0.15 except layer 0"


@pytest.mark.parametrize(
    ("text", "model", "message"),
    [
        ("ahon_ln:published:0.10", "demo", "no published results for 'demo', only for 14 models"),
        ("ahon_ln:published:0.12", "Qwen2.5-7B", "at shares 0, 0.05, .*not at 0.12"),
        ("ahon_ln:published/arc_easy:0.10", "Qwen2.5-7B", "no task 'arc_easy'"),
        ("random:published:0.10", "Qwen2.5-7B", "No threshold of random"),
        ("ahon_ln:measured:0.10", "Qwen2.5-7B", "is not understood"),
        ("ahon_ln@published:0.10", "Qwen2.5-7B", "is not understood"),
        ("ahon_ln:published", "Qwen2.5-7B", "is not understood"),
        ("ahon_ln:published:10", "Qwen2.5-7B", "write 10% as 0.10"),
    ],
)
def test_a_threshold_that_was_not_published_is_refused(text, model, message):
    with pytest.raises(InputError, match=message):
        parse_policy(text, model=model)
