import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headcount.attention.measurements import CALIBRATED, MEASUREMENTS, LayerMeasurements
from headcount.errors import InputError
from headcount.scores import all_scores, get_score, is_registered, load_scores, registry, score, select_scores

#: Those of the paper and of its code.
IDS = [
    "awft", "awft_ln", "aeqd", "aeqd_ln", "ftvvn", "ftvvn_ln", "avvn", "avvn_ln", "lthon", "lthon_ln", "lthon_hn",
    "ahon", "ahon_ln", "fhon", "fhon_ln", "random",
]  # fmt: skip
ALIASES = {
    "HONOR": "ahon_ln",
    "UnnormalizedHONOR": "ahon",
    "Dormant": "awft",
    "NormalizedDormant": "awft_ln",
    "Entropy": "aeqd",
    "NormalizedEntropy": "aeqd_ln",
    "ValueVectorMagnitudeFirstToken": "ftvvn",
    "ValueVectorMagnitudeNormalizedFirstToken": "ftvvn_ln",
    "ValueVectorAvgMagnitude": "avvn",
    "ValueVectorAvgNormalizedMagnitude": "avvn_ln",
    "HeadOutputMagnitudeLastToken": "lthon",
    "HeadOutputMagnitudeNormalizedLastToken": "lthon_ln",
    "HeadOutputMagnitudeNormalizedHeadLastToken": "lthon_hn",
    "FullHeadOutput": "fhon",
    "FullHeadOutputNormalized": "fhon_ln",
    "Random": "random",
}
every_score = pytest.mark.parametrize("s", all_scores(), ids=lambda s: s.id)
FACTS = {"name": "Mine", "needs": ["entropy"], "inactive_when": "low", "unit": "1", "source": "here"}


@pytest.fixture
def clean_registry(monkeypatch):
    """Registrations of a test are forgotten after it."""
    monkeypatch.setattr(registry, "_SCORES", dict(registry._SCORES))
    monkeypatch.setattr(registry, "_NAMES", dict(registry._NAMES))


def measured(batch: int = 3, heads: int = 5, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(batch, heads, generator=generator) + 0.01 for name in sorted(MEASUREMENTS)}


def test_the_published_scores_are_registered():
    assert sorted(s.id for s in all_scores() if s.source.startswith("arXiv 2504.03889")) == sorted(IDS)


@every_score
def test_facts_are_complete(s):
    assert s.name
    assert s.source
    assert s.function.__doc__
    if s.id in IDS:
        assert s.inactive_when == ("high" if s.id.startswith("awft") else "low")
    assert s.unit == "1" or not s.id.endswith(("_ln", "_hn"))
    assert s.needs <= MEASUREMENTS


@every_score
@settings(deadline=None, max_examples=20)
@given(order=st.permutations(range(5)))
def test_permuting_heads_permutes_scores(s, order):
    given_ = measured()
    permuted = {name: values[:, order] for name, values in given_.items()}
    torch.testing.assert_close(s(LayerMeasurements(**permuted)), s(LayerMeasurements(**given_))[:, order])


@every_score
@settings(deadline=None, max_examples=20)
@given(order=st.permutations(range(3)))
def test_the_order_of_the_batch_is_irrelevant(s, order):
    given_ = measured()
    permuted = {name: values[order] for name, values in given_.items()}
    torch.testing.assert_close(s(LayerMeasurements(**permuted)), s(LayerMeasurements(**given_))[order])


@every_score
def test_an_examples_scores_do_not_depend_on_the_others(s):
    given_ = measured()
    alone = {name: values[1:2] for name, values in given_.items()}
    torch.testing.assert_close(s(LayerMeasurements(**alone)), s(LayerMeasurements(**given_))[1:2])


@every_score
def test_inputs_are_unchanged(s):
    given_ = measured()
    before = {name: values.clone() for name, values in given_.items()}
    result = s(LayerMeasurements(**given_))
    assert result.shape == (3, 5)
    for name, values in given_.items():
        assert torch.equal(values, before[name])


@every_score
def test_needs_are_enough_and_all_are_read(s):
    given_ = measured()
    torch.testing.assert_close(
        s(LayerMeasurements(**{name: given_[name] for name in s.needs})), s(LayerMeasurements(**given_))
    )
    for missing in s.needs:
        rest = {name: given_[name] for name in s.needs - {missing}}
        with pytest.raises(InputError, match=f"'{missing}' was not measured"):
            s(LayerMeasurements(**rest))


@every_score
def test_inactive_is_strict_and_never_nan(s):
    values = torch.tensor([1.0, 2.0, 3.0, float("nan")])
    expected = [True, False, False, False] if s.inactive_when == "low" else [False, False, True, False]
    assert s.inactive(values, 2.0).tolist() == expected


def test_reading_what_was_not_declared_raises(clean_registry):
    @score("dishonest", **FACTS)
    def dishonest(m):
        return m.entropy + m.output_norm

    with pytest.raises(InputError, match=r"'output_norm' was not measured. .*needs=\['output_norm', …\]"):
        get_score("dishonest")(LayerMeasurements(entropy=torch.ones(1, 2)))


@pytest.mark.usefixtures("clean_registry")
def test_undeclared_measurements_raise_even_when_other_scores_read_them(tiny):
    from headcount.measure import measure_heads

    @score("dishonest", **FACTS)
    def dishonest(m):
        return m.entropy + m.output_norm

    with pytest.raises(InputError, match="'output_norm' was not measured"):
        measure_heads(tiny(num_hidden_layers=1), [[5, 6, 7]], scores=["ahon", "dishonest"])


def test_measurements_are_read_only_and_know_their_names():
    m = LayerMeasurements(entropy=torch.ones(1, 2))
    with pytest.raises(AttributeError, match="read-only"):
        m.entropy = torch.zeros(1, 2)
    with pytest.raises(AttributeError, match="entrpy"):
        _ = m.entrpy


@pytest.mark.parametrize(("alias", "id"), ALIASES.items())
def test_aliases_resolve_in_any_case(alias, id):
    for name in (alias, alias.lower(), alias.upper(), id, id.upper()):
        assert get_score(name).id == id


@pytest.mark.parametrize(
    ("name", "nearest"), [("ahom_ln", "ahon_ln"), ("HONOUR", "HONOR"), ("entrop", "Entropy"), ("lthonhn", "lthon_hn")]
)
def test_unknown_names_give_the_nearest(name, nearest):
    with pytest.raises(InputError, match=f"Unknown score '{name}'.*{nearest}.*headcount scores"):
        get_score(name)


def test_select_scores():
    heads = [score for score in all_scores() if score.is_of("head") and not score.needs & CALIBRATED]
    assert select_scores("all") == heads
    assert len(heads) == 16
    assert [score.id for score in select_scores("all", "mlp")] == [
        "lthon",
        "lthon_hn",
        "ahon",
        "fhon",
        "random",
        "fthon",
        "rms_res",
        "influence",
    ]
    assert not {"fhon_ln", "griffin", "awft"} & {score.id for score in select_scores("all", "mlp")}
    assert {"fhon_ln", "griffin", "gate"} <= {score.id for score in select_scores("all", "neuron")}
    assert [s.id for s in select_scores("HONOR")] == ["ahon_ln"]
    assert [s.id for s in select_scores(["awft", "HONOR", "ahon_ln", "aeqd"])] == ["awft", "ahon_ln", "aeqd"]
    with pytest.raises(InputError, match="No score was given"):
        select_scores([])
    with pytest.raises(InputError, match="Unknown score 'nope'"):
        select_scores(["awft", "nope"])


def test_a_score_of_ones_own_is_found(clean_registry):
    @score("mine", **FACTS, aliases=["MyScore"])
    def mine(m):
        """Twice the entropy."""
        return 2 * m.entropy

    assert get_score("MYSCORE").function is mine
    assert all_scores()[-1].id == "mine"
    assert get_score("mine").needs == {"entropy"}


@pytest.mark.parametrize(
    ("id", "changes", "message"),
    [
        ("ahon", {}, "'ahon' is already taken by 'ahon'"),
        ("honor", {}, "'honor' is already taken by 'ahon_ln'"),
        ("mine", {"aliases": ["mine too", "DORMANT"]}, "'DORMANT' is already taken by 'awft'"),
        ("mine", {"needs": ["entropi"]}, r"unknown measurements \['entropi'\]. Did you mean entropy"),
        ("mine", {"inactive_when": "small"}, "inactive_when is 'low' or 'high', not 'small'"),
    ],
)
@pytest.mark.usefixtures("clean_registry")
def test_a_refused_registration_leaves_the_registry_unchanged(id, changes, message):
    scores, names = dict(registry._SCORES), dict(registry._NAMES)
    with pytest.raises(InputError, match=message):
        score(id, **(FACTS | changes))(lambda m: m.entropy)
    assert scores == registry._SCORES
    assert names == registry._NAMES


HEAD = """
import sys
import headcount as hc

@hc.score("own", name="Own", needs=["output_norm"], inactive_when="low", unit="1", source="here", aliases=["mine"])
def own(m):
    return m.output_norm

"""


@pytest.mark.parametrize(
    ("rest", "why"),
    [
        ("sys.exit(0)", r"cannot be run \(SystemExit: 0\)"),
        ("exit()", "cannot be run"),
        ("raise SystemExit", "cannot be run"),
        ("1 / 0", "ZeroDivisionError"),
        ("def (", "SyntaxError"),
        ("import no_such_module", "ModuleNotFoundError"),
        (HEAD.replace('"own"', '"ahon"'), "already taken by 'ahon'"),
    ],
)
def test_a_file_of_scores_that_fails_is_refused_and_leaves_nothing(tmp_path, rest, why):
    file = tmp_path / "own.py"
    file.write_text(HEAD + rest)
    with pytest.raises(InputError, match=why):
        load_scores(file)
    assert not is_registered("own")
    assert not is_registered("mine")


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda m: m.output_norm / 0 if 1 // 0 else None, r"'failing' fails \(ZeroDivisionError"),
        (lambda m: m.no_such, "'failing' fails"),
        (lambda m: m.output_norm.numpy() + m.output_norm.tolist()[0][0], "gave ndarray"),
        (lambda m: None, "gave NoneType"),
        (lambda m: m.output_norm.to(torch.complex64), "gave torch.complex64"),
        (lambda m: m.output_norm.mean(), r"gave shape \(\)"),
        (lambda m: m.output_norm[:, :1], r"gave shape \(2, 1\)"),
        (lambda m: m.output_norm @ m.output_norm, r"'failing' fails \(RuntimeError"),
    ],
)
def test_a_score_that_gives_no_number_for_each_head_is_refused(function, why):
    failing = dataclasses.replace(get_score("ahon"), id="failing", function=function)
    with pytest.raises(InputError, match=why):
        failing.values(LayerMeasurements(output_norm=torch.ones(2, 3)), (2, 3))


def test_a_score_that_does_not_fit_in_memory_says_so():
    def large(m):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):  # for who can halve the batch
        dataclasses.replace(get_score("ahon"), function=large)(LayerMeasurements(output_norm=torch.ones(2, 3)))


def test_names_of_another_kind_are_refused():
    with pytest.raises(InputError, match="A score is named by its id"):
        get_score(3)
    with pytest.raises(InputError, match="A score is named by its id"):
        select_scores(["ahon", 3])
    with pytest.raises(InputError, match="scores is 'all', one id or a list"):
        select_scores(None)
