import pytest
import xarray as xr

from headcount.errors import InputError
from headcount.models.observe import units_of
from headcount.policies import RANDOM, UNTOUCHED, WRITTEN, Fixed, Random, Threshold, check_policy, parse_policy
from headcount.resolving import read_policy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ahon_ln:0.10", Threshold("ahon_ln", share=0.1)),
        ("AHON_LN:.1", Threshold("ahon_ln", share=0.1)),
        ("HONOR:0", Threshold("ahon_ln", share=0.0)),
        ("dormant:1", Threshold("awft", share=1.0)),
        (" ahon_ln : 0.10 ", Threshold("ahon_ln", share=0.1)),
        ("ahon_ln@0.5", Threshold("ahon_ln", 0.5)),
        ("awft @ 1e-3", Threshold("awft", 0.001)),
        ("awft@-2", Threshold("awft", -2.0)),
        ("random:0.1", Random(0.1)),
    ],
)
def test_policies_are_read(text, expected):
    assert parse_policy(text) == expected


@pytest.mark.parametrize(
    ("text", "wants"),
    [
        ("honor:0.1", ("ahon_ln", 0.1, "")),
        ("awft:published/piqa:0.2", ("awft", 0.2, "published/piqa")),
        ("ahon_ln@0.1", None),
        ("random:0.1", None),
        ("random@0.1", None),
    ],
)
def test_only_shares_of_measured_scores_want_a_threshold(text, wants):
    assert parse_policy(text).wants == wants


def test_a_policy_without_its_threshold_decides_nothing(tiny):
    policy = parse_policy("ahon_ln:0.1")
    with pytest.raises(InputError, match=r"ahon_ln:0.1 names a share and has no threshold yet"):
        check_policy(policy, units_of(tiny("llama")))
    with pytest.raises(InputError, match=r"ahon_ln:0.1 needs a threshold: measure ahon_ln first"):
        policy.found(None)


@pytest.mark.parametrize("kind", WRITTEN)
def test_every_written_kind_reads_its_own_labels(kind):
    policy = kind(0.25) if kind is Random else kind("ahon_ln", 0.25)
    assert parse_policy(policy.label) == policy
    facts = policy.facts()
    assert facts.policy == policy.label
    assert facts.columns().keys() == {"policy", "curve", "score", "share_asked", "threshold"}


def test_a_curve_joins_the_shares_of_one_way_to_decide():
    def curve(text, **options):
        return read_policy(text, **options).facts().curve

    assert curve("ahon_ln:0.1") == curve("honor:0.3") == curve("ahon_ln@0.5") == "ahon_ln"
    assert curve("random:0.1") == curve("random:0.2", seed=3) == RANDOM
    assert curve("ahon_ln:0.1", exclude_layers=[2, 0]) == "ahon_ln except layer 0, 2"
    assert curve("ahon_ln:published:0.1", model="Qwen2.5-7B") == "ahon_ln:published"
    assert (Fixed([(0, 1)], name="induction").facts().curve, UNTOUCHED.curve) == ("", "")


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
        parse_policy("awft@nan")


def test_thresholds_are_filled_in():
    cuts = xr.Dataset({"ahon_ln": ("share", [0.25, 0.5])}, coords={"share": [0.1, 0.2]})
    assert parse_policy("HONOR:0.2").found(cuts) == Threshold("ahon_ln", 0.5, share=0.2)
    assert parse_policy("ahon_ln@0.7").found(None) == Threshold("ahon_ln", 0.7)
    assert parse_policy("random:0.1").found(None) == Random(0.1)


def test_excluded_layers_go_along():
    for text in ("random:0.1", "awft@0.8"):
        assert parse_policy(text, exclude_layers=[0, 2, 0]).exclude_layers == {0, 2}
    with pytest.raises(InputError, match=r"exclude_layers holds layer indices"):
        parse_policy("random:0.1", exclude_layers=[-1])


def test_published_thresholds_are_policies():
    policy = read_policy("HONOR:published:0.15", model="allenai/OLMo-2-1124-7B-Instruct")
    assert isinstance(policy, Threshold)
    assert (policy.score, policy.share) == ("ahon_ln", 0.15)
    assert policy.threshold == pytest.approx(0.457, abs=5e-4)
    assert policy.label == "ahon_ln:published:0.15"
    on_piqa = read_policy("ahon_ln : Published/piqa : 0.15", model="OLMo-2-1124-7B-Instruct", exclude_layers=[0])
    assert on_piqa.wants is None
    assert on_piqa.label == "ahon_ln:published/piqa:0.15 except layer 0"


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
        read_policy(text, model=model)
