"""What is off is replaced as numpy says, for policies, replacements and rows of every kind, however texts are read."""

from contextlib import ExitStack

import numpy as np
import pytest
import torch

from headcount.errors import InputError, ModelError
from headcount.evaluation.engine import run_plan
from headcount.evaluation.plan import ScoringPlan
from headcount.measure import measure_heads, summarise_heads
from headcount.models.instrument import instrument
from headcount.models.observe import attention_modules, units_of
from headcount.models.projection import output_projection
from headcount.policies import Fixed, Random, Ranked, Threshold, parse_policy, score_of
from headcount.replacements import Kept, Linear, Mean, Zero
from headcount.scores import get_score
from headcount.thresholding import thresholds
from tests.calibrated import calibrated_on, predicted, seen
from tests.models.families import FAMILIES as ALL
from tests.models.families import build

TEXTS = [list(range(3 + 7 * i % 11, 80, 3 + i % 4))[: 9 + 2 * (i % 5)] for i in range(14)]
HOW = {"zero": Zero(), "mean": Mean(), "linear": Linear(), "kept": Kept()}
#: Of each kind, at a threshold or share that leaves some heads on and some off.
POLICIES = [
    "ahon_ln@0.97",
    "ahon_ln/token@0.97",
    "awft/token@0.35",
    "ftvvn/token@1e9",
    "random:0.4",
    "random/token:0.4",
    "keptg:rank:0.4",
    "jointg:rank:0.4",
    "devg/token:rank:0.4",
]
FAMILIES = ["llama", "gpt2", "gemma2"]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return build(request.param)


@pytest.fixture(scope="module")
def calibration(model):
    return calibrated_on(model, TEXTS)


def by_hand(model, row, decide, how, calibration, *, keep_first=False):
    """Logits [token, vocabulary] with the heads ``decide(layer, outputs [token, head, width]) → [token, head]`` off."""

    def entering(layer):
        def hook(_, args, kwargs):
            inputs[layer] = (args[0] if args else kwargs["hidden_states"])[0].double().numpy()

        return hook

    def hook_of(layer):
        def hook(_, args):
            outputs = args[0][0].double().numpy()
            heads = units[layer].num_attention_heads
            off = decide(layer, outputs.reshape(len(outputs), heads, -1))
            changed = outputs.copy()
            for token in range(keep_first, len(outputs)):
                gone = np.repeat(off[token], units[layer].head_dim)
                if gone.any():
                    known = calibration.layers[layer]
                    changed[token, gone] = predicted(known, off[token], outputs, inputs[layer], how)[token]
            return (torch.tensor(changed)[None].to(args[0].dtype),)

        return hook

    inputs, units = {}, {layer.index: layer for layer in units_of(model).layers}
    with ExitStack() as stack, torch.no_grad():
        for layer, module in attention_modules(model).items():
            stack.callback(module.register_forward_pre_hook(entering(layer), with_kwargs=True).remove)
            stack.callback(output_projection(module).register_forward_pre_hook(hook_of(layer)).remove)
        return model(torch.tensor([row]), use_cache=False).logits[0]


def under(model, policy, row, **options):
    with instrument(model, policy=policy, **options) as probe, torch.no_grad():
        return model(torch.tensor([row]), use_cache=False).logits[0], probe


def with_replacement(text, how, calibration, **more):
    name, sign, rest = text.partition("@" if "@" in text else ":")
    said = ("" if how == "zero" else f"+{how}") + ("+keep-first" if more.get("keep_first") else "")
    return parse_policy(name + said + sign + rest).calibrated(calibration)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("keep_first", [False, True])
def test_the_same_heads_are_replaced_as_numpy_does(model, calibration, how, keep_first):
    heads = [(layer.index, head) for layer in units_of(model).layers for head in (0, 2, 3)]
    policy = Fixed(heads, instead=HOW[how], keep_first=keep_first).calibrated(calibration)

    def decide(layer, outputs):
        return np.isin(np.arange(outputs.shape[1]), [0, 2, 3])[None].repeat(len(outputs), 0)

    for row in TEXTS[:3]:
        logits, probe = under(model, policy, row)
        expected = by_hand(model, row, decide, how, calibration, keep_first=keep_first)
        torch.testing.assert_close(logits, expected, rtol=0, atol=5e-5)
        assert probe.share_off[0] == pytest.approx(len(heads) / units_of(model).num_units)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("keep_first", [False, True])
def test_heads_decided_for_each_token_are_replaced_as_numpy_does(model, calibration, how, keep_first):
    policy = with_replacement("ahon_ln/token@0.97", how, calibration, keep_first=keep_first)
    pairs = []

    def decide(layer, outputs):
        norms = np.linalg.norm(outputs, axis=-1)
        off = norms / norms.mean(1, keepdims=True) < 0.97
        pairs.append(off[keep_first:].sum())
        return off

    for row in TEXTS[:3]:
        logits, probe = under(model, policy, row)
        pairs.clear()
        expected = by_hand(model, row, decide, how, calibration, keep_first=keep_first)
        torch.testing.assert_close(logits, expected, rtol=0, atol=5e-5)
        assert probe.share_off[0] == pytest.approx(sum(pairs) / (len(row) * units_of(model).num_units))
        assert 0.1 < probe.share_off[0] < 0.9


@pytest.mark.parametrize("family", sorted(ALL.keys() - {*FAMILIES, "qwen3_next"}))  # which `calibrate` refuses
def test_every_family_replaces_as_numpy_does(family):
    """Fixed heads and heads of tokens, in one pass, under padding and in two parts."""
    model = build(family)
    known = calibrated_on(model, TEXTS)
    row, most = TEXTS[3], {layer.index: layer.num_attention_heads for layer in units_of(model).layers}
    fixed = Fixed([(layer, head) for layer in most for head in (0, 2, 3)], instead=Kept(), calibration=known)
    for policy, how, decide in (
        (fixed, "kept", lambda _, outputs: np.isin(np.arange(outputs.shape[1]), [0, 2, 3])[None].repeat(len(outputs), 0)),
        (with_replacement("ahon_ln/token@0.97", "linear", known, keep_first=True), "linear", _below),
        (with_replacement("ahon_ln/token@0.97", "kept", known, keep_first=True), "kept", _below),
    ):  # fmt: skip
        logits, probe = under(model, policy, row)
        torch.testing.assert_close(
            logits, by_hand(model, row, decide, how, known, keep_first=policy.keep_first), rtol=0, atol=1e-4
        )
        assert 0.05 < probe.share_off[0] < 0.95
        if family == "recurrent_gemma":  # which reads padding, untouched too
            continue
        with instrument(model, policy=policy) as padded, torch.no_grad():
            mask = torch.tensor([[0] * 3 + [1] * len(row), [1] * (len(row) + 3)])
            rows = torch.tensor([[7] * 3 + row, TEXTS[4][:3] + row])
            found = model(rows, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), use_cache=False)
        torch.testing.assert_close(found.logits[0, 3:], logits, rtol=0, atol=2e-4)
        assert padded.share_off[0] == pytest.approx(probe.share_off[0])


def _below(_, outputs):
    norms = np.linalg.norm(outputs, axis=-1)
    return norms / norms.mean(1, keepdims=True) < 0.97


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("text", POLICIES)
def test_padding_and_company_change_nothing(model, calibration, text, how):
    policy = with_replacement(text, how, calibration)
    rows, length = TEXTS[:5], max(map(len, TEXTS[:5]))
    for side in ("left", "right"):
        pad = [[7] * (length - len(row)) for row in rows]
        tokens = torch.tensor([p + row if side == "left" else row + p for p, row in zip(pad, rows, strict=True)])
        mask = torch.tensor([
            [0] * len(p) + [1] * len(row) if side == "left" else [1] * len(row) + [0] * len(p)
            for p, row in zip(pad, rows, strict=True)
        ])  # fmt: skip
        with instrument(model, policy=policy) as probe, torch.no_grad():
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            logits = model(tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits
        for i, row in enumerate(rows):
            alone, of_one = under(model, policy, row)
            torch.testing.assert_close(logits[i][mask[i].bool()], alone, rtol=0, atol=2e-4)
            assert probe.share_off[i] == pytest.approx(of_one.share_off[0], abs=1e-9)
            np.testing.assert_array_equal(probe.off.values[i], of_one.off.values[0])


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("text", [text for text in POLICIES if "/token" in text])
def test_a_cache_filled_token_by_token_or_in_parts_gives_what_a_whole_pass_gives(model, calibration, text, how):
    policy, row = with_replacement(text, how, calibration, keep_first=True), TEXTS[3]
    whole, of_whole = under(model, policy, row)
    for cuts in ([1] * len(row), [4, 1, len(row) - 5], [len(row) - 1, 1]):
        parts, cache, start = [], None, 0
        with instrument(model, policy=policy) as probe, torch.no_grad():
            for cut in cuts:
                given = model(torch.tensor([row[start : start + cut]]), past_key_values=cache, use_cache=True)
                parts.append(given.logits[0])
                cache, start = given.past_key_values, start + cut
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-4)
        assert probe.share_off[0] == pytest.approx(of_whole.share_off[0])
        np.testing.assert_array_equal(probe.off.values, of_whole.off.values)


def plan_of(rows):
    """Texts that begin alike, of which every token but the first is asked for."""
    return ScoringPlan.from_requests([(row[:1], row[1:]) for row in rows], 512)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("text", POLICIES)
def test_the_engine_gives_what_a_pass_alone_gives(model, calibration, text, how):
    """Beginnings are shared for as long as that is exact, and the untouched model's pass until something is off."""
    policy = with_replacement(text, how, calibration)
    start = TEXTS[0] + TEXTS[1]
    rows = [[*start, *TEXTS[i]] for i in (2, 3, 4)] + [TEXTS[5]]
    found = run_plan(model, plan_of(rows), [None, policy], batch_tokens=60).of_policies[1]
    for i, row in enumerate(rows):
        logits, probe = under(model, policy, row[:-1])  # nothing is read after the last token that is asked for
        nats = logits.log_softmax(-1)[torch.arange(len(row) - 1), row[1:]].sum().item()
        assert found.loglikelihoods[i][0] == pytest.approx(nats, abs=2e-3)
        assert found.share_off[i] == pytest.approx(probe.share_off[0], abs=1e-9)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["ahon_ln", "ahon_ln/token", "ahon_ln/token:rank", "random", "random/token"])
def test_at_share_zero_nothing_changes_to_the_last_bit(model, calibration, name, how):
    measured = summarise_heads(model, [row[:-1] for row in TEXTS], scores=[score_of(name)])
    policy = with_replacement(f"{name}:0", how, calibration).found(thresholds(measured, [0.0]))
    untouched, same = run_plan(model, plan_of(TEXTS), [None, policy]).of_policies
    assert untouched.loglikelihoods == same.loglikelihoods
    assert not same.share_off.any()


@pytest.mark.parametrize("name", ["random", "random/token"])
def test_all_off_with_the_mean_is_the_mean_ablated_model(model, calibration, name):
    policy = with_replacement(f"{name}:1", "mean", calibration)
    row = TEXTS[2]

    def ablated(layer):
        known = calibration.layers[layer]

        def hook(_, args):
            put = known.mean.flatten().expand_as(args[0]).clone()
            put[:, 0] = known.first.flatten()
            return (put,)

        return hook

    with ExitStack() as stack, torch.no_grad():
        for layer, module in attention_modules(model).items():
            stack.callback(output_projection(module).register_forward_pre_hook(ablated(layer)).remove)
        expected = model(torch.tensor([row]), use_cache=False).logits[0]
    logits, probe = under(model, policy, row)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    assert probe.share_off[0] == 1


def test_scores_of_a_calibration_are_what_would_be_lost(model, calibration):
    names = {"devg": "mean", "ling": "linear", "keptg": "kept"}
    table = measure_heads(model, TEXTS[:3], scores=[*names], calibration=calibration)
    units = units_of(model)
    for layer, texts in seen(model, TEXTS[:3]).items():
        projection, known = output_projection(attention_modules(model)[layer]), calibration.layers[layer]
        place, (heads, width) = units.layer_indices.index(layer), known.mean.shape
        zero = projection(torch.zeros(1, heads * width))
        for i, (outputs, inputs) in enumerate(texts):
            for head in range(heads):
                off = np.arange(heads) == head
                for name, how in names.items():
                    lost = np.zeros_like(outputs)
                    own = np.repeat(off, width)
                    lost[:, own] = outputs[:, own] - predicted(known, off, outputs, inputs, how)
                    written = (projection(torch.tensor(lost).float()) - zero).detach().square().sum(1).mean().item()
                    assert table[name].values[i, place, head] == pytest.approx(known.sensitivity * written, rel=2e-3)


def test_heads_chosen_jointly_go_one_after_another(model, calibration):
    table = measure_heads(model, TEXTS[:3], scores=["jointg"], calibration=calibration)["jointg"]
    for place, (layer, texts) in enumerate(seen(model, TEXTS[:3]).items()):
        projection, known = output_projection(attention_modules(model)[layer]), calibration.layers[layer]
        heads, width = known.mean.shape
        zero = projection(torch.zeros(1, heads * width))

        def damage(off, outputs, inputs, width=width, known=known, projection=projection, zero=zero):
            lost, own = np.zeros_like(outputs), np.repeat(off, width)
            lost[:, own] = outputs[:, own] - predicted(known, off, outputs, inputs, "kept")
            return (projection(torch.tensor(lost[1:]).float()) - zero).detach().square().sum(1).mean().item()

        for i, (outputs, inputs) in enumerate(texts):
            off, before, highest, expected = np.zeros(heads, bool), 0.0, 0.0, np.zeros(heads)
            while not off.all():
                after = {h: damage(off | (np.arange(heads) == h), outputs, inputs) for h in np.flatnonzero(~off)}
                least = min(after, key=after.__getitem__)
                highest = max(highest, after[least] - before)
                expected[least], before, off[least] = highest, after[least], True
            np.testing.assert_allclose(table.values[i, place], known.sensitivity * expected, rtol=2e-3)


def test_heads_chosen_jointly_are_no_heads_of_tokens():
    with pytest.raises(InputError, match=r"jointg reads the layer's joint_error.*Use it per input"):
        get_score("jointg/token")


def of_tokens(model, rows, name, calibration):
    return summarise_heads(model, rows, scores=[f"{name}/token"], calibration=calibration).scores[f"{name}/token"]


@pytest.mark.parametrize("name", ["awft", "ahon", "fhon", "avvn", "devg", "ling", "keptg", "ftvvn"])
def test_a_mean_over_tokens_is_the_mean_of_what_each_token_has(model, calibration, name):
    for row in TEXTS[:2]:
        whole = measure_heads(model, [row], scores=[name], calibration=calibration)[name].values[0]
        found = of_tokens(model, [row], name, calibration).moments
        np.testing.assert_allclose(found.mean, whole, rtol=2e-4)
        assert (found.count == len(row)).all()
        if name == "ftvvn":  # the first token's, whichever token it is of
            np.testing.assert_allclose(found.smallest, found.largest, rtol=1e-6)


def test_a_token_is_held_against_the_layers_heads_at_that_token(model, calibration):
    found = of_tokens(model, TEXTS[:2], "ahon_ln", calibration).moments
    for place, (layer, texts) in enumerate(seen(model, TEXTS[:2]).items()):
        heads = calibration.layers[layer].mean.shape[0]
        norms = np.linalg.norm(np.concatenate([o.reshape(len(o), heads, -1) for o, _ in texts]), axis=-1)
        scores = norms / norms.mean(1, keepdims=True)
        np.testing.assert_allclose(found.mean[place], scores.mean(0), rtol=1e-4)
        np.testing.assert_allclose(found.smallest[place], scores.min(0), rtol=1e-4)


def test_tokens_count_as_often_as_texts_have_them(model, calibration):
    start = TEXTS[0] + TEXTS[1]
    rows = [[*start, *TEXTS[2]], [*start, *TEXTS[3]], TEXTS[4], [*start, *TEXTS[2]], TEXTS[4] + [5]]
    together = of_tokens(model, rows, "ahon_ln", calibration)
    parts = [of_tokens(model, [row], "ahon_ln", calibration) for row in rows]
    expected = parts[0] + parts[1] + parts[2] + parts[3] + parts[4]
    np.testing.assert_array_equal(together.moments.count, expected.moments.count)
    np.testing.assert_allclose(together.moments.mean, expected.moments.mean, rtol=1e-5)
    np.testing.assert_allclose(together.quantiles([0.1, 0.5]), expected.quantiles([0.1, 0.5]), rtol=1e-3)


def test_random_heads_of_tokens_are_drawn_as_often_as_asked_and_by_seed(tiny):
    model = tiny("llama")
    rows = [np.random.default_rng(i).integers(3, 200, 200).tolist() for i in range(4)]
    shares = [[under(model, Random(0.3, seed, per="token"), row)[1].share_off[0] for row in rows] for seed in (0, 1)]
    num_pairs = 4 * 200 * units_of(model).num_units
    for of_seed in shares:
        assert abs(np.mean(of_seed) - 0.3) < 4 * (0.21 / num_pairs) ** 0.5
    assert shares[0] != shares[1]


@pytest.mark.parametrize("score", ["ahon_ln", "awft", "ahon_ln/token", "devg/token"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.35, 1.0])
def test_of_ranked_heads_as_many_are_off_as_asked_on_every_row(model, calibration, score, share):
    units = units_of(model)
    for row in TEXTS[:4]:
        _, probe = under(model, Ranked(score, share, calibration=calibration), row)
        assert abs(probe.share_off[0] - share) <= 0.5 / units.num_units + 1e-9
        if score == "ahon_ln" and 0 < share < 1:  # in the first layer nothing was changed before
            first = measure_heads(model, [row], scores=[score])[score].values[0, 0]
            off = probe.off.values[0, 0]
            assert first[off].max(initial=-1) < first[~off].min()


def test_what_is_missing_or_makes_no_sense_is_refused(tiny, calibration, model):
    def refused(error, match, model, policy, **options):
        with pytest.raises(error, match=match), instrument(model, policy=policy, **options):
            pass

    bare = Fixed([(0, 1)], instead=Mean())
    refused(ModelError, "calibration is of tiny", build("llama", seed=3), bare.calibrated(calibration))
    refused(InputError, "needs a calibration", model, bare)
    refused(InputError, "decides per token decides anew", model, Random(0.1, per="token"), decide="running")
    with pytest.raises(InputError, match="devg needs a calibration"):
        measure_heads(model, TEXTS, scores=["devg"])
    with pytest.raises(InputError, match="summarise_heads"):
        measure_heads(model, TEXTS, scores=["ahon/token"])
    again = calibrated_on(model, TEXTS[:7])
    two = [Fixed([(0, 1)], instead=Mean(), calibration=calibration), Threshold("devg", 1.0, calibration=again)]
    with pytest.raises(InputError, match="Two calibrations"):
        run_plan(model, plan_of(TEXTS), two)
