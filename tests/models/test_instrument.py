"""Restoring, zeroing and recording. The scores' values are held in test_instrument_scores.py."""

import copy

import numpy as np
import pytest
import torch

from headcount.errors import InputError
from headcount.measure import measure_heads
from headcount.models.instrument import instrument
from headcount.models.observe import units_of
from headcount.policies import Fixed, Random, Threshold
from headcount.scores import select_scores
from headcount.thresholding import thresholds
from headcount.units import LayerUnits
from tests.models.traces import TOKENS, logits, traces

ALL_HEADS_OF_LAYER_0 = [(0, head) for head in range(8)]
SHARP = {"initializer_range": 0.2}  # attention far from uniform


def columns_zeroed(model, zeroed):
    """Hooks that zero, per example, the columns of each o_proj's input that belong to ``zeroed [example, layer, head]``."""

    def hook(layer):
        def zero(module, args):
            kept = ~torch.as_tensor(zeroed[:, layer]).repeat_interleave(args[0].shape[-1] // zeroed.shape[-1], dim=1)
            return (args[0] * kept[:, None],)

        return zero

    return [m.self_attn.o_proj.register_forward_pre_hook(hook(i)) for i, m in enumerate(model.model.layers)]


# Restoring


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_model_is_restored_exactly(tiny, implementation):
    model = tiny()
    model.set_attn_implementation(implementation)
    before, found = logits(model), traces(model)
    with instrument(model, policy=Fixed([(0, 0)]), scores="all"):
        assert not torch.equal(logits(model), before)
    assert torch.equal(logits(model), before)
    assert traces(model) == found
    assert model.config._attn_implementation == implementation


def test_the_model_is_restored_after_an_error_inside(tiny):
    model = tiny()
    before, found = logits(model), traces(model)
    with pytest.raises(IndexError), instrument(model, policy=Random(0.5), scores="all"):
        logits(model)[99]
    assert torch.equal(logits(model), before)
    assert traces(model) == found


def test_a_pass_that_fails_midway_leaves_nothing_behind(tiny):
    model = tiny()
    before = logits(model)
    with instrument(model, scores=["ahon"]) as probe:
        expected = probe_scores(model, probe)

        def fail(*_):
            raise torch.OutOfMemoryError("CUDA out of memory.")

        hook = model.model.layers[1].mlp.register_forward_pre_hook(fail)
        with pytest.raises(torch.OutOfMemoryError):
            logits(model)
        hook.remove()
        assert probe.scores.sizes["example"] == 0
        np.testing.assert_array_equal(probe_scores(model, probe, TOKENS[:1]), expected[:1])
    assert torch.equal(logits(model), before)


def probe_scores(model, probe, tokens=TOKENS):
    probe.clear()
    for row in tokens:
        logits(model, row[None])
    values = probe.scores["ahon"].values
    probe.clear()
    return values


def test_blocks_follow_each_other(tiny):
    model = tiny()
    before, found = logits(model), traces(model)
    with instrument(model, policy=Fixed([(0, 0)])) as first:
        alone = logits(model)
    with instrument(model, policy=Fixed([(2, 5)])) as second:
        assert not torch.equal(logits(model), alone)
    assert set(zip(*np.nonzero(second.off.values)[1:], strict=True)) == {(2, 5)}
    assert set(zip(*np.nonzero(first.off.values)[1:], strict=True)) == {(0, 0)}
    assert first.off.sizes["example"] == len(TOKENS)
    assert torch.equal(logits(model), before)
    assert traces(model) == found


def test_two_models_at_once_do_not_meet(tiny):
    one, two = tiny(), tiny(seed=5)
    before = logits(one), logits(two)
    with instrument(one, policy=Fixed([(0, 0)])) as first, instrument(two, policy=Fixed([])) as second:
        assert not torch.equal(logits(one), before[0])
        logits(two)
        logits(two)
    assert (first.off.sizes["example"], second.off.sizes["example"]) == (3, 6)
    assert torch.equal(logits(one), before[0])
    assert torch.equal(logits(two), before[1])


# Zeroing


@pytest.mark.parametrize("score", ["ahon", "awft", "lthon_hn", "random"])
def test_zeroing_equals_zeroing_columns_of_the_projections_input(tiny, score):
    model = tiny(**SHARP)
    mask = torch.ones_like(TOKENS)
    mask[1, 8:] = 0  # one example is shorter
    cut = measure_heads(model, TOKENS.tolist(), scores=[score])[score].median().item()
    with instrument(model, policy=Threshold(score, cut)) as probe:
        intervened = logits(model, attention_mask=mask)
    zeroed = probe.off.values
    assert 0.2 < zeroed.mean() < 0.8
    assert not np.array_equal(zeroed[0], zeroed[1])  # decided for each example
    hooks = columns_zeroed(model, zeroed)
    expected = logits(model, attention_mask=mask)
    for hook in hooks:
        hook.remove()
    real = mask.bool()
    torch.testing.assert_close(intervened[real], expected[real], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(intervened[real], logits(model, attention_mask=mask)[real], atol=1e-2)


@pytest.mark.parametrize("score", [s.id for s in select_scores("all")])
def test_share_0_changes_no_logit(tiny, score):
    model = tiny(**SHARP)
    with instrument(model, scores=[score]) as probe:
        unintervened = logits(model)
    cut = thresholds(probe.scores, [0.0])[score].item()
    with instrument(model, policy=Threshold(score, cut, share=0.0), scores=[score]) as probe:
        assert torch.equal(logits(model), unintervened)
    assert not probe.off.any()


@pytest.mark.parametrize(
    "policy", [Random(0.0), Fixed([]), Threshold("ahon", -1.0), Threshold("fhon", -1.0), Threshold("awft", 2.0)]
)
def test_policies_that_zero_nothing_change_no_logit(tiny, policy):
    model = tiny(**SHARP)
    before = logits(model)
    with instrument(model):
        unintervened = logits(model)
    torch.testing.assert_close(
        unintervened, before, rtol=1e-4, atol=1e-5
    )  # the same attention, rounded in another order
    with instrument(model, policy=policy) as probe:
        assert torch.equal(logits(model), unintervened)
    assert probe.share_off.tolist() == [0, 0, 0]


def test_scores_are_those_of_the_intervened_stream(tiny):
    model = tiny(**SHARP)
    untouched = measure_heads(model, TOKENS.tolist())
    with instrument(model, policy=Fixed(ALL_HEADS_OF_LAYER_0), scores="all") as probe:
        logits(model)
    torch.nn.init.zeros_(model.model.layers[0].self_attn.o_proj.weight)  # what layer 0 attends to reaches no other
    expected = measure_heads(model, TOKENS.tolist())
    for name in expected.data_vars:
        np.testing.assert_allclose(probe.scores[name][:, 1:], expected[name][:, 1:], rtol=1e-4, atol=1e-5, err_msg=name)
        # Layer 0 is measured before its own zeroing.
        np.testing.assert_allclose(probe.scores[name][:, 0], untouched[name][:, 0], rtol=1e-4, atol=1e-5)
        if name != "random":
            assert not np.allclose(probe.scores[name][:, 1], untouched[name][:, 1], rtol=1e-2), name


def test_excluded_layers_are_never_touched(tiny):
    policies = [
        Threshold("ahon", float("inf"), exclude_layers=[0, 2]),
        Random(1.0, exclude_layers=[0, 2]),
        Fixed([(0, 1), *[(1, head) for head in range(8)]], exclude_layers=[0, 2]),
    ]
    model = tiny()
    found = []
    for policy in policies:
        with instrument(model, policy=policy) as probe:
            found.append(logits(model))
        assert probe.off.all("head").values.tolist() == [[False, True, False]] * 3
        assert probe.off.any("head").values.tolist() == [[False, True, False]] * 3
        assert probe.share_off.tolist() == [1 / 3] * 3
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


# Random


def zeroed_by(model, policy, rows, *, side="right", width=None):
    width = width or max(map(len, rows))
    tokens = torch.full((len(rows), width), 7)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        at = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        tokens[i, at], mask[i, at] = torch.tensor(row), 1
    with instrument(model, policy=policy) as probe:
        logits(model, tokens, attention_mask=mask)
    return probe.off.values


def test_random_heads_repeat_by_seed_whatever_the_batch(tiny):
    model = tiny()
    rows = [TOKENS[0, :5].tolist(), TOKENS[1].tolist(), TOKENS[2, :9].tolist()]
    given = zeroed_by(model, Random(0.3, seed=4), rows)
    np.testing.assert_array_equal(zeroed_by(model, Random(0.3, seed=4), rows[::-1])[::-1], given)
    np.testing.assert_array_equal(zeroed_by(model, Random(0.3, seed=4), rows, side="left", width=20), given)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(zeroed_by(model, Random(0.3, seed=4), [row])[0], given[i])
    assert not np.array_equal(zeroed_by(model, Random(0.3, seed=5), rows), given)
    assert not np.array_equal(given[0], given[1])
    assert not np.array_equal(given[:, 0], given[:, 1])


def test_random_zeroes_about_its_share_and_more_includes_less(tiny):
    rows = torch.randint(3, 256, (80, 3), generator=torch.Generator().manual_seed(2)).tolist()
    model = tiny()
    by_share = {share: zeroed_by(model, Random(share), rows) for share in (0.1, 0.3)}
    for share, zeroed in by_share.items():
        # 80 × 24 draws: the standard deviation of the share is at most sqrt(0.3 · 0.7 / 1920) = 0.0105.
        assert zeroed.mean() == pytest.approx(share, abs=0.035)
    assert (by_share[0.3] | ~by_share[0.1]).all()


def test_the_runs_seed_is_that_of_the_random_score_and_the_policy_has_its_own(tiny):
    model = tiny()
    with instrument(model, policy=Random(0.3, seed=4), scores=["random"], seed=9) as probe:
        logits(model)
    with instrument(model, policy=Threshold("random", 0.3), scores=["random"], seed=4) as same:
        logits(model)
    np.testing.assert_array_equal(probe.off, same.off)
    np.testing.assert_array_equal(same.off, same.scores["random"] < 0.3)
    assert not np.array_equal(probe.scores["random"], same.scores["random"])


# Recording


def test_geometry_is_the_models(tiny):
    assert units_of(tiny()).layers == tuple(
        LayerUnits(index=i, num_attention_heads=8, num_key_value_heads=2, head_dim=8) for i in range(3)
    )
    wide = units_of(tiny("qwen3", num_hidden_layers=1, num_key_value_heads=4, head_dim=16))
    assert wide.layers == (LayerUnits(index=0, num_attention_heads=8, num_key_value_heads=4, head_dim=16),)


def test_the_probe_records_examples_in_order_with_coordinates(tiny):
    model = tiny()
    mask = torch.ones_like(TOKENS)
    mask[1, 8:] = 0
    with instrument(model, policy=Fixed([(1, 2)]), scores=["awft", "HONOR"]) as probe:
        assert probe.scores.sizes == {"example": 0, "layer": 3, "head": 8}
        assert probe.off.sizes == {"example": 0, "layer": 3, "head": 8}
        logits(model, attention_mask=mask)
        logits(model, TOKENS[:2, :7])
    scores, zeroed = probe.scores, probe.off
    assert list(scores.data_vars) == ["awft", "ahon_ln"]
    for values in (*scores.data_vars.values(), zeroed):
        assert values.dims == ("example", "layer", "head")
        assert values.shape == (5, 3, 8)
        assert values["layer"].values.tolist() == [0, 1, 2]
        assert values["head"].values.tolist() == list(range(8))
        assert values["num_tokens"].values.tolist() == [12, 8, 12, 7, 7]
    assert {values.dtype for values in scores.data_vars.values()} == {np.dtype("float32")}
    assert zeroed.dtype == bool
    assert zeroed.sum() == zeroed.sel(layer=1, head=2).sum() == 5
    np.testing.assert_allclose(probe.share_off, [1 / 24] * 5)
    probe.clear()
    assert probe.scores.sizes["example"] == probe.off.sizes["example"] == len(probe.share_off) == 0


def test_a_layer_with_fewer_heads_has_nan_for_the_rest(tiny):
    model = tiny(**SHARP)
    narrow = tiny(**SHARP, num_attention_heads=4, num_key_value_heads=2, head_dim=8, seed=3)
    model.model.layers[1] = narrow.model.layers[1]
    model.model.layers[1].self_attn.config = model.config  # where the attention implementation is looked up
    with instrument(model, policy=Random(1.0), scores="all") as probe:
        logits(model)
    for name, values in probe.scores.data_vars.items():
        assert values[:, 1, 4:].isnull().all(), name
    assert probe.scores["ahon"][:, 1, :4].notnull().all()
    assert probe.off[:, 1].values.tolist() == [[True] * 4 + [False] * 4] * 3
    assert probe.share_off.tolist() == [1.0] * 3
    with (
        pytest.raises(InputError, match="Query head 4 of layer 1 does not exist"),
        instrument(model, policy=Fixed([(1, 4)])),
    ):
        pass


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_are_float32_in_lower_precision_too(tiny, dtype):
    model = tiny(**SHARP)
    expected = measure_heads(model, TOKENS.tolist(), scores=["ahon", "awft", "aeqd", "fhon"])
    measured = measure_heads(model.to(dtype), TOKENS.tolist(), scores=["ahon", "awft", "aeqd", "fhon"])
    for name, values in measured.data_vars.items():
        assert values.dtype == np.float32
        np.testing.assert_allclose(values[:, 0], expected[name][:, 0], rtol=0.05)
        assert (torch.from_numpy(values.values) != torch.from_numpy(values.values).to(dtype)).any()  # not its steps


def test_layers_with_a_configuration_of_their_own_are_measured_and_restored(tiny):
    model = tiny()
    own = copy.deepcopy(model.config)
    model.model.layers[1].self_attn.config = own
    with instrument(model, scores=["ahon"]) as probe, torch.no_grad():
        model(torch.tensor([[5, 6, 7]]))
    assert probe.scores["ahon"].notnull().all()
    assert probe.scores["layer"].values.tolist() == [0, 1, 2]
    assert own._attn_implementation == model.config._attn_implementation == "sdpa"
