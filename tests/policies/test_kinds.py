import numpy as np
import pytest
import torch
import xarray as xr

from headcount.errors import InputError
from headcount.outputs import Outputs
from headcount.policies import Fixed, PolicyFacts, Random, Ranked, Seen, Threshold, check_policy, parse_policy
from headcount.replacements import Zero
from headcount.units import UnitSet

CPU = torch.device("cpu")
SHAPE = (1, 4)
NAN = float("nan")


def layer(index, shape, measured, place=0):
    outputs = Outputs(layer=index, values=torch.zeros(*shape, 1, 1), measured=measured)
    return Seen(outputs, lambda seed: measured["uniform"], place=place)


def decide(policy, **measured):
    return policy.decide(layer(0, SHAPE, {k: torch.tensor([v]) for k, v in measured.items()}))[0].tolist()


def test_a_low_score_is_zeroed_strictly_below_its_threshold():
    # 1 < 2 is zeroed; 2 equals the threshold and stays; NaN is not measured and stays.
    assert decide(Threshold("ahon", 2.0), output_norm=[1.0, 2.0, 3.0, NAN]) == [True, False, False, False]


def test_a_high_score_is_zeroed_strictly_above_its_threshold():
    zeroed = decide(Threshold("awft", 0.5), first_token_weight=[0.25, 0.5, 0.75, NAN])
    assert zeroed == [False, False, True, False]


@pytest.mark.parametrize(("score", "threshold"), [("ahon", float("inf")), ("awft", float("-inf"))])
def test_nan_is_never_zeroed_even_by_an_infinite_threshold(score, threshold):
    measured = {"ahon": "output_norm", "awft": "first_token_weight"}[score]
    assert decide(Threshold(score, threshold), **{measured: [0.0, 0.5, 1.0, NAN]}) == [True, True, True, False]


def test_random_zeroes_draws_strictly_below_its_share():
    assert decide(Random(0.5), uniform=[0.0, 0.49, 0.5, 0.99]) == [True, True, False, False]
    assert decide(Random(0.0), uniform=[0.0, 0.49, 0.5, 0.99]) == [False] * 4
    assert decide(Random(1.0), uniform=[0.0, 0.49, 0.5, 0.99]) == [True] * 4


def test_what_ranked_rounds_off_in_one_layer_with_heads_is_added_in_the_next():
    # An eighth of 4 heads is half a head a layer: one in every second, whichever layers of the model they are.
    norms = {"output_norm": torch.tensor([[3.0, 1.0, 2.0, NAN]])}
    by_layer = [Ranked("ahon", 0.125).decide(layer(1 + 2 * place, SHAPE, norms, place))[0] for place in range(4)]
    assert [off.tolist() for off in by_layer] == [[False, True, False, False], [False] * 4] * 2


def test_fixed_zeroes_its_heads_of_each_layer_on_every_example():
    policy = Fixed([(0, 1), (2, 3), (2, 0)])
    by_layer = [policy.decide(layer(index, (2, 4), {})).int().tolist() for index in range(3)]
    assert by_layer == [[[0, 1, 0, 0]] * 2, [[0, 0, 0, 0]] * 2, [[1, 0, 0, 1]] * 2]


@pytest.mark.parametrize(
    ("policy", "label"),
    [
        (Threshold("ahon_ln", 0.25, share=0.1), "ahon_ln:0.1"),
        (Threshold("awft", 0.8), "awft@0.8"),
        (Threshold("HONOR", 0.25, share=0), "ahon_ln:0"),
        (Random(0.1), "random:0.1"),
        (Random(0.1, seed=7), "random:0.1#7"),
        (Fixed([(0, 1)]), "fixed"),
        (Fixed([(0, 1)], name="induction"), "induction"),
    ],
)
def test_labels(policy, label):
    assert policy.label == label


def test_policies_say_what_they_read():
    assert Threshold("lthon_ln", 0.1).needs == {"last_output_norm", "output_norm"}
    assert Random(0.1).needs == {"uniform"}
    assert Fixed([]).needs == frozenset()


def test_policies_are_values():
    assert Threshold("HONOR", 1) == Threshold("ahon_ln", 1.0, exclude_layers=[])
    assert Fixed([(1, 2)]) == Fixed(UnitSet([(1, 2)]))
    assert len({Random(0.1), Random(0.1), Random(0.2)}) == 2
    with pytest.raises(AttributeError):
        Random(0.1).share = 0.2


def test_unknown_score_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"Unknown score 'ahom'\. Did you mean ahon"):
        Threshold("ahom", 1.0)


def test_a_threshold_that_is_nan_is_refused():
    with pytest.raises(InputError, match=r"The threshold for ahon is NaN\. Give a number"):
        Threshold("ahon", NAN)


@pytest.mark.parametrize("share", [-0.01, 1.01, 10, NAN])
@pytest.mark.parametrize("build", [Random, lambda share: Threshold("ahon", 1.0, share=share)])
def test_shares_outside_0_to_1_are_refused(build, share):
    with pytest.raises(InputError, match=r"between 0 and 1, not .*; write 10% as 0\.10"):
        build(share)


@pytest.mark.parametrize("wrong", [-1, 1.0, "1", None])
@pytest.mark.parametrize(
    "build",
    [
        lambda layers: Threshold("ahon", 1.0, exclude_layers=layers),
        lambda layers: Random(0.1, exclude_layers=layers),
        lambda layers: Fixed([], exclude_layers=layers),
    ],
)
def test_excluded_layers_are_indices_from_0(build, wrong):
    assert build([2, 0, 2]).exclude_layers == {0, 2}
    with pytest.raises(InputError, match="exclude_layers holds layer indices counted from 0, not"):
        build([0, wrong])


def test_fixed_refuses_what_is_not_a_head():
    with pytest.raises(InputError, match="A head is a pair"):
        Fixed([1, 2])


@pytest.mark.parametrize("policy", [Fixed([(0, 8)]), Fixed([(3, 0)]), Fixed([(0, -1)])])
def test_heads_the_model_lacks_are_refused(tiny, policy):
    from headcount.models.instrument import instrument

    with pytest.raises(InputError, match=r"does not exist: layers are 0…2 with up to 8 query heads"):
        instrument(tiny(), policy=policy).__enter__()


def test_layers_the_model_lacks_are_refused(tiny):
    from headcount.models.instrument import instrument

    with pytest.raises(InputError, match="exclude_layers names layer 3; the model's layers with query heads are 0…2"):
        instrument(tiny(), policy=Random(0.1, exclude_layers=[0, 3])).__enter__()


def test_values_of_the_wrong_type_are_refused():
    with pytest.raises(InputError, match="is a number, not 'abc'"):
        Threshold("ahon", "abc")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="collection of layer indices"):
        Random(0.1, exclude_layers=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="A share lies between"):
        Random("0.1")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (
            Threshold("ahon_ln", 0.451234, share=0.1),
            "zeroes heads whose ahon_ln (Avg Head Output Norm, layer-normalised) is below 0.4512, "
            "beyond which 10% of its scores lie",
        ),
        (
            Threshold("awft", 0.9, exclude_layers=frozenset({0, 1})),
            "zeroes heads whose awft (Avg Weight of First Token) is above 0.9 except layer 0, 1",
        ),
        (Random(0.25, seed=3), "zeroes each head of each input with probability 25%, seed 3"),
        (Fixed([(0, 3), (2, 1)]), "zeroes the same 2 heads on every input (layer.head: 0.3, 2.1)"),
    ],
)
def test_policies_say_what_they_do(policy, said):
    assert str(policy) == said
    assert policy._repr_html_() == f"<p><b>{policy.label}</b>: {said}</p>"
    assert eval(repr(policy), {type(policy).__name__: type(policy), "UnitSet": UnitSet, "Zero": Zero}) == policy


def test_html_of_a_hostile_name_is_escaped():
    assert "<script>" not in Fixed([(0, i) for i in range(20)], name="<script>alert(1)</script>")._repr_html_()
    assert str(Fixed([(0, i) for i in range(20)])).endswith("0.11 and 8 more)")


@pytest.mark.parametrize("whole", [np.int64, np.uint8, torch.tensor])
def test_numbers_of_numpy_and_torch_are_numbers(whole):
    layers = frozenset({0, 2})
    given = [whole(0), whole(2)]
    for policy in (Threshold("ahon", 1.0, exclude_layers=given), Random(0.1, exclude_layers=given)):
        assert policy.exclude_layers == layers
        assert {type(layer) for layer in policy.exclude_layers} == {int}
    assert Random(0.1, whole(3)) == Random(0.1, 3)
    assert Random(0.1, whole(3)).label == "random:0.1#3"
    assert Fixed([(whole(1), whole(2))]) == Fixed([(1, 2)])


def test_arrays_and_tensors_are_collections():
    heads = [[0, 3], [2, 1]]
    assert Fixed(np.array(heads)) == Fixed(torch.tensor(heads)) == Fixed([(0, 3), (2, 1)])
    assert Random(np.float32(0.5), exclude_layers=np.array([1])) == Random(0.5, exclude_layers=frozenset({1}))
    assert Threshold("ahon", torch.tensor(2.0), share=torch.tensor(0.25)) == Threshold("ahon", 2.0, share=0.25)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Random(0.1, exclude_layers=[1.0]), "exclude_layers holds layer indices"),
        (lambda: Random(0.1, exclude_layers=[np.int64(-1)]), "exclude_layers holds layer indices"),
        (lambda: Random(0.1, exclude_layers=["1"]), "exclude_layers holds layer indices"),
        (lambda: Random(0.1, exclude_layers=1), "exclude_layers is a collection"),
        (lambda: Random(0.1, seed=1.5), "A seed is a whole number"),
        (lambda: Random(0.1, seed=2**127), "A seed is a whole number"),
        (lambda: check_policy("random:0.1"), "A policy is a Threshold, Random or Fixed"),
        (lambda: check_policy(Random), "A policy is a Threshold, Random or Fixed"),
        (lambda: Random(torch.tensor([0.1, 0.2])), "A share lies"),
        (lambda: Random("0.1"), "A share lies"),
        (lambda: Random(NAN), "A share lies"),
        (lambda: Fixed(3), "Heads are pairs"),
        (lambda: Fixed([3]), "A head is a pair"),
        (lambda: Fixed([(0.5, 1)]), "A head is a pair"),
    ],
)
def test_what_is_no_number_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_fixed_heads_are_told_apart_by_what_they_decide():
    one, other = Fixed([(0, 0), (1, 1)]).facts(), Fixed([(1, 1), (0, 0)]).facts()
    assert one == other
    assert one.decides.startswith("2 heads, ")
    assert Fixed([(0, 0), (1, 2)]).facts().decides != one.decides
    kept = Fixed([(0, 0), (1, 1)], exclude_layers=[1]).facts()
    assert (kept.policy, kept.decides) == ("fixed except layer 1", Fixed([(0, 0)]).facts().decides)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"policy": 3}, "The policy of a policy's facts is text, not 3"),
        ({"policy": ""}, "The policy of a policy's facts is text, not ''"),
        ({"policy": "p", "curve": None}, "The curve of a policy's facts is text"),
        ({"policy": "p", "share_asked": NAN}, "between 0 and 1, not nan"),
        ({"policy": "p", "share_asked": 7.0}, "write 10% as 0.10"),
        ({"policy": "p", "threshold": NAN}, "The threshold of p is a number, not nan"),
        ({"policy": "p", "threshold": "x"}, "The threshold of p is a number, not 'x'"),
    ],
)
def test_facts_are_checked(facts, message):
    with pytest.raises(InputError, match=message):
        PolicyFacts(**facts)


def test_numbers_of_other_libraries_are_numbers_in_facts():
    facts = PolicyFacts(policy="p", share_asked=np.float32(0.5), threshold=torch.tensor(2.0))
    assert (type(facts.share_asked), facts.share_asked, facts.threshold) == (float, 0.5, 2.0)


@pytest.mark.parametrize("needs", [frozenset({"nonsense"}), "output_norm", ["output_norm"], None])
def test_needs_of_another_kind_are_refused(monkeypatch, needs):
    monkeypatch.setattr(Random, "needs", needs)
    with pytest.raises(InputError, match=r"random:0.1 says that it needs .*`needs` is a frozenset of .*output_norm"):
        check_policy(Random(0.1))


@pytest.mark.parametrize("cuts", [xr.Dataset({"awft": ("share", [0.5])}, coords={"share": [0.2]}), 0.3,
                                  xr.Dataset({"ahon_ln": ("share", [0.5])}, coords={"share": [0.2]})])  # fmt: skip
def test_cuts_that_lack_a_threshold_are_refused(cuts):
    with pytest.raises(InputError, match=r"ahon_ln:0.1 needs the threshold of ahon_ln at 0.1, which these cuts lack"):
        Threshold("ahon_ln", share=0.1).found(cuts)


def test_random_heads_of_another_seed_are_read_as_they_are_called():
    assert parse_policy("random:0.1#7") == Random(0.1, seed=7)
    assert parse_policy(Random(0.3, seed=-2).label) == Random(0.3, seed=-2)
    with pytest.raises(InputError, match="is not understood"):
        parse_policy("random:0.1#x")
