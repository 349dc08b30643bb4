"""Neurons and MLPs are measured and off as plain hooks say, for policies and rows of every kind, however texts are read."""

from contextlib import ExitStack

import numpy as np
import pytest
import torch

from headcount.errors import InputError, ModelError
from headcount.evaluation.engine import run_plan
from headcount.evaluation.plan import ScoringPlan
from headcount.models.instrument import instrument
from headcount.models.observe import mlps_of, units_of
from headcount.policies import Fixed, Random, Threshold, parse_policy
from headcount.replacements import Mean
from headcount.scores import select_scores
from tests.calibrated import calibrated_on
from tests.models.families import build

TEXTS = [list(range(3 + 7 * i % 11, 80, 3 + i % 4))[: 9 + 2 * (i % 5)] for i in range(8)]
#: Of each kind, at a threshold or share that leaves some units on and some off.
POLICIES = {
    "neuron": ["ahon_ln@0.8", "fhon/token@0.05", "rms_res@0.03", "rms_res/token@0.03", "griffin/token@0.05", "random:0.4",
               "random/token:0.4", "fthon/token@0.05", "fhon/token+keep-first@0.05"],
    "mlp": ["rms_res@0.6", "rms_res/token@0.6", "random:0.4", "random/token+keep-first:0.4"],
}  # fmt: skip
CASES = [(kind, text) for kind, texts in POLICIES.items() for text in texts]


@pytest.fixture(scope="module", params=["llama", "gemma2", "phi", "opt"])
def model(request):
    return build(request.param)


def under(model, policy, row, unit, **options):
    with instrument(model, policy=policy, unit=unit, **options) as probe, torch.no_grad():
        return model(torch.tensor([row]), use_cache=False).logits[0], probe


def by_hand(model, row, decide):
    """Logits ``[token, vocabulary]`` with neurons off where ``decide(layer, activations [token, neuron], norms)`` says."""

    def hook_of(layer, down):
        weight = down.weight if hasattr(down, "in_features") else down.weight.T
        norms = weight.detach().norm(dim=0)

        def hook(_, args):
            values = args[0].reshape(len(row), -1)
            return (values.masked_fill(decide(layer, values, norms), 0).view(args[0].shape),)

        return hook

    with ExitStack() as stack, torch.no_grad():
        for layer, mlp in mlps_of(model).items():
            stack.callback(mlp.down.register_forward_pre_hook(hook_of(layer, mlp.down)).remove)
        return model(torch.tensor([row]), use_cache=False).logits[0]


def test_neurons_decided_for_each_token_are_off_as_plain_hooks_say(model):
    pairs = []

    def decide(layer, values, norms):
        off = values.abs() * norms < 0.05
        pairs.append(int(off.sum()))
        return off

    for row in TEXTS[:3]:
        pairs.clear()
        expected = by_hand(model, row, decide)
        logits, probe = under(model, parse_policy("fhon/token@0.05"), row, "neuron")
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
        assert probe.share_off[0] == pytest.approx(sum(pairs) / (len(row) * units_of(model, "neuron").num_units))
        assert 0.02 < probe.share_off[0] < 0.98


def test_neurons_decided_for_an_input_are_off_as_plain_hooks_say(model):
    def decide(layer, values, norms):
        size = values.abs().mean(0)
        return size / size.mean() < 0.8

    for row in TEXTS[:3]:
        logits, probe = under(model, parse_policy("ahon_ln@0.8"), row, "neuron")
        torch.testing.assert_close(logits, by_hand(model, row, decide), rtol=0, atol=1e-5)
        assert 0.02 < probe.share_off[0] < 0.98


def test_a_layers_mlp_is_off_as_if_it_were_not_there(model):
    row, off = TEXTS[4], [(0, 0), (2, 0)]

    def decide(layer, values, norms):
        return torch.full_like(values, (layer, 0) in off, dtype=torch.bool)

    logits, probe = under(model, Fixed(off), row, "mlp")
    torch.testing.assert_close(logits, by_hand(model, row, decide), rtol=0, atol=1e-5)
    assert probe.share_off[0] == pytest.approx(2 / 3)


@pytest.mark.parametrize(("kind", "text"), CASES)
def test_padding_and_company_change_nothing(model, kind, text):
    policy = parse_policy(text)
    rows, length = TEXTS[:4], max(map(len, TEXTS[:4]))
    for side in ("left", "right"):
        pad = [[7] * (length - len(row)) for row in rows]
        tokens = torch.tensor([p + row if side == "left" else row + p for p, row in zip(pad, rows, strict=True)])
        mask = torch.tensor([
            [0] * len(p) + [1] * len(row) if side == "left" else [1] * len(row) + [0] * len(p)
            for p, row in zip(pad, rows, strict=True)
        ])  # fmt: skip
        scores = [score.id for score in select_scores("all", kind) if score.id not in ("gate", "influence")]
        with instrument(model, policy=policy, unit=kind, scores=scores) as probe, torch.no_grad():
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            logits = model(tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits
        for i, row in enumerate(rows):
            alone, of_one = under(model, policy, row, kind, scores=scores)
            torch.testing.assert_close(logits[i][mask[i].bool()], alone, rtol=0, atol=2e-4)
            assert probe.share_off[i] == pytest.approx(of_one.share_off[0], abs=2e-3)
            for name in scores:
                np.testing.assert_allclose(
                    probe.scores[name].values[i], of_one.scores[name].values[0], rtol=1e-3, atol=1e-4
                )


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, text in CASES if "/token" in text])
def test_a_cache_filled_in_parts_gives_what_a_whole_pass_gives(model, kind, text):
    policy, row = parse_policy(text), TEXTS[3]
    whole, of_whole = under(model, policy, row, kind)
    for cuts in ([1] * len(row), [4, 1, len(row) - 5]):
        parts, cache, start = [], None, 0
        with instrument(model, policy=policy, unit=kind) as probe, torch.no_grad():
            for cut in cuts:
                given = model(torch.tensor([row[start : start + cut]]), past_key_values=cache, use_cache=True)
                parts.append(given.logits[0])
                cache, start = given.past_key_values, start + cut
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-4)
        assert probe.share_off[0] == pytest.approx(of_whole.share_off[0], abs=2e-3)


@pytest.mark.parametrize("decide", ["prompt", "running"])
def test_generation_keeps_the_neurons_of_the_prompt_or_decides_anew(model, decide):
    """Against a plain loop without a cache, for as long as answers are decided on what they were decided on."""
    policy, prompt = parse_policy("fhon@0.06"), TEXTS[2]
    with instrument(model, policy=policy, unit="neuron", decide=decide) as probe, torch.no_grad():
        answer = model.generate(
            torch.tensor([prompt]), max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None
        )
    row, kept = [*prompt], {}
    for step in range(4):

        def of_step(layer, values, norms, step=step):
            if step == 0 or decide == "running":
                # Earlier tokens keep what was decided when they were read.
                now = values.abs().mean(0) * norms < 0.06
                before = kept.get(layer)
                new = now.expand_as(values) if before is None else torch.cat([before, now[None]])
            else:
                new = torch.cat([kept[layer], kept[layer][:1]])
            kept[layer] = new
            return new

        if decide == "running" and step:
            break  # a plain loop does not have the activations that earlier decisions left
        logits = by_hand(model, row, of_step)
        row.append(int(logits[-1].argmax()))
    assert answer[0, : len(row)].tolist() == row
    assert probe.scores.sizes["example"] == 1
    assert 0.02 < probe.share_off[0] < 0.98


def plan_of(rows):
    """Texts that begin alike, of which every token but the first is asked for."""
    return ScoringPlan.from_requests([(row[:1], row[1:]) for row in rows], 512)


@pytest.mark.parametrize(("kind", "text"), CASES)
def test_the_engine_gives_what_a_pass_alone_gives(model, kind, text):
    policy = parse_policy(text)
    start = TEXTS[0] + TEXTS[1]
    rows = [[*start, *TEXTS[i]] for i in (2, 3, 4)] + [TEXTS[5]]
    found = run_plan(model, plan_of(rows), [None, policy], batch_tokens=60, unit=kind).of_policies[1]
    for i, row in enumerate(rows):
        logits, probe = under(model, policy, row[:-1], kind)
        nats = logits.log_softmax(-1)[torch.arange(len(row) - 1), row[1:]].sum().item()
        assert found.loglikelihoods[i][0] == pytest.approx(nats, abs=2e-3)
        assert found.share_off[i] == pytest.approx(probe.share_off[0], abs=2e-3)


@pytest.mark.parametrize("kind", POLICIES)
def test_the_engine_records_what_a_pass_alone_measures(model, kind):
    start = TEXTS[0] + TEXTS[1]
    rows = [[*start, *TEXTS[i]] for i in (2, 3, 4)] + [TEXTS[5]]
    scores = run_plan(model, plan_of([[*row, 1] for row in rows]), scores="all", batch_tokens=60, unit=kind).scores
    for i, row in enumerate(rows):
        _, probe = under(model, None, row, kind, scores="all")
        assert [*scores.data_vars] == [*probe.scores.data_vars]
        for name in scores.data_vars:
            np.testing.assert_allclose(
                scores[name].values[i], probe.scores[name].values[0], rtol=1e-3, atol=1e-5, err_msg=name
            )


@pytest.mark.parametrize(
    ("kind", "text"), [(kind, text) for kind in POLICIES for text in ("random:0", "random/token:0")]
)
def test_at_share_zero_nothing_changes_to_the_last_bit(model, kind, text):
    untouched, same = run_plan(model, plan_of(TEXTS), [None, parse_policy(text)], unit=kind).of_policies
    assert untouched.loglikelihoods == same.loglikelihoods
    with torch.no_grad():
        plain = model(torch.tensor([TEXTS[0]]), use_cache=False).logits[0]
    with instrument(model, unit=kind), torch.no_grad():
        untouched_logits = model(torch.tensor([TEXTS[0]]), use_cache=False).logits[0]
    torch.testing.assert_close(under(model, parse_policy(text), TEXTS[0], kind)[0], untouched_logits, rtol=0, atol=0)
    torch.testing.assert_close(untouched_logits, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", POLICIES)
def test_random_units_are_drawn_as_often_as_asked(model, kind):
    row = np.random.default_rng(0).integers(3, 200, 100).tolist()
    shares = [under(model, Random(0.3, seed, per="token"), row, kind)[1].share_off[0] for seed in (0, 1)]
    pairs = 100 * units_of(model, kind).num_units
    assert all(abs(share - 0.3) < 4 * (0.21 / pairs) ** 0.5 for share in shares)
    assert shares[0] != shares[1]


def test_what_units_do_not_have_is_refused(model):
    def refused(error, match, **options):
        with pytest.raises(error, match=match), instrument(model, **options):
            pass

    refused(InputError, "MLP neurons have no awft", scores=["awft"], unit="neuron")
    refused(InputError, "MLPs have no ahon_ln", scores=["ahon_ln"], unit="mlp")
    refused(InputError, "Query heads have no griffin", scores=["griffin"])
    refused(
        InputError,
        "reads first_token_weight, which MLP neurons do not have",
        policy=parse_policy("awft@0.1"),
        unit="neuron",
    )
    refused(InputError, "MLP neuron 5000 of layer 1 does not exist", policy=Fixed([(1, 5000)]), unit="neuron")
    refused(
        InputError,
        r"\(1, 1\) is no layer's MLP: layers are 0…2, and each has one, 0",
        policy=Fixed([(1, 1)]),
        unit="mlp",
    )
    refused(InputError, "A unit is one of head, group", unit="expert")
    if model.config.model_type == "gemma2":
        refused(ModelError, "normalises or scales what its MLPs write", scores=["influence"], unit="mlp")


def test_what_is_calibrated_for_heads_is_not_put_in_the_place_of_neurons():
    model = build("llama")
    policy = Threshold("fhon", 0.05, instead=Mean(), calibration=calibrated_on(model, TEXTS))
    for kind in ("neuron", "mlp"):
        with pytest.raises(InputError, match="calibrated for heads alone"), instrument(model, policy=policy, unit=kind):
            pass
        with pytest.raises(InputError, match="calibrated for heads alone"):
            run_plan(model, plan_of(TEXTS), [policy], unit=kind)


def test_block_influence_is_the_turn_of_the_residual_stream():
    model = build("llama")
    before, after = {}, {}
    with ExitStack() as stack, torch.no_grad():
        for i, layer in enumerate(model.model.layers):
            norm = layer.post_attention_layernorm
            stack.callback(norm.register_forward_pre_hook(lambda _, args, i=i: before.update({i: args[0]})).remove)
            stack.callback(layer.register_forward_hook(lambda _, a, out, i=i: after.update({i: out})).remove)
        model(torch.tensor([TEXTS[1]]))
    _, probe = under(model, None, TEXTS[1], "mlp", scores=["influence", "fhon"])
    for i in range(3):
        cosine = torch.cosine_similarity(before[i].double(), after[i].double(), dim=-1).mean()
        assert probe.scores["influence"].values[0, i, 0] == pytest.approx(1 - cosine.item(), rel=1e-4)
        assert probe.scores["fhon"].values[0, i, 0] == pytest.approx(
            (after[i] - before[i]).norm(dim=-1).mean().item(), rel=1e-4
        )


def test_the_gate_is_what_the_activation_function_gives(model):
    family = model.config.model_type
    _, probe = under(model, None, TEXTS[1], "neuron", scores=["gate", "ahon"])
    if family in ("phi", "opt"):
        np.testing.assert_allclose(probe.scores["gate"].values, probe.scores["ahon"].values, rtol=1e-5)
        return
    gates = {}
    with ExitStack() as stack, torch.no_grad():
        for i, layer in enumerate(model.model.layers):
            stack.callback(layer.mlp.act_fn.register_forward_hook(lambda _, a, out, i=i: gates.update({i: out})).remove)
        model(torch.tensor([TEXTS[1]]))
    for i, gate in gates.items():
        np.testing.assert_allclose(probe.scores["gate"].values[0, i], gate[0].abs().mean(0), rtol=1e-4)


@pytest.mark.parametrize("of_heads", ["ahon_ln@0.97", "ahon_ln/token@0.97", "random:0.4"])
@pytest.mark.parametrize("of_neurons", ["fhon@0.05", "fhon/token@0.05", "random/token:0.3"])
def test_heads_and_neurons_are_off_at_once(model, of_heads, of_neurons):
    """What each layer's MLP decides it decides on what attention left, which a plain loop sees too."""
    heads, neurons, row = parse_policy(of_heads), parse_policy(of_neurons), TEXTS[3]
    with instrument(model, policy={"head": heads, "neuron": neurons}) as probe, torch.no_grad():
        logits = model(torch.tensor([row]), use_cache=False).logits[0]
    beside = probe.beside["neuron"]
    assert 0 < probe.share_off[0] < 1
    assert 0 < beside.share_off[0] < 1
    if "token" in of_heads or "token" in of_neurons:
        cache, start, parts = None, 0, []
        if "token" in of_heads and "token" in of_neurons:
            with instrument(model, policy={"head": heads, "neuron": neurons}), torch.no_grad():
                for cut in (3, len(row) - 3):
                    given = model(torch.tensor([row[start : start + cut]]), past_key_values=cache, use_cache=True)
                    parts.append(given.logits[0])
                    cache, start = given.past_key_values, start + cut
            torch.testing.assert_close(torch.cat(parts), logits, rtol=0, atol=1e-4)
        return
    off = [(int(layer), int(unit)) for layer, unit in np.argwhere(beside.off.values[0])]
    fixed = Fixed([(int(layer), int(head)) for layer, head in np.argwhere(probe.off.values[0])])

    def decide(layer, values, norms):
        return torch.tensor([(layer, neuron) in off for neuron in range(values.shape[-1])]).expand_as(values)

    with instrument(model, policy=fixed), torch.no_grad():
        expected = by_hand(model, row, decide)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_two_kinds_of_one_place_are_refused(model):
    with (
        pytest.raises(InputError, match="neuron and mlp are units of one place"),
        instrument(model, policy={"neuron": Random(0.1), "mlp": Random(0.1)}, unit="neuron"),
    ):
        pass


def test_an_mlp_exchanged_inside_a_block_is_not_passed_over():
    model = build("llama")
    with instrument(model, policy=Random(0.1), unit="neuron"), torch.no_grad():
        model.model.layers[0].mlp.down_proj = torch.nn.Linear(96, 64, bias=False)
        with pytest.raises(ModelError, match="2 of the model's 3 MLPs"):
            model(torch.tensor([TEXTS[0]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_scaled_before_it_is_added_has_no_influence(dtype):
    model = build("granite").to(dtype)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 5] = 3000  # beside which all that is added is small
    assert not any(mlp.normed for mlp in mlps_of(model).values())
    for layer in model.model.layers:
        layer.residual_multiplier = 0.22
    with pytest.raises(ModelError, match="normalises or scales"), instrument(model, scores=["influence"], unit="mlp"):
        pass


def test_of_a_layer_whose_activations_are_all_0_each_has_no_part():
    model = build("opt")
    with torch.no_grad():
        model.model.decoder.layers[0].fc1.bias.fill_(-1e4)
    for text in ("griffin@0.01", "griffin/token@0.01"):
        _, probe = under(model, parse_policy(text), TEXTS[1], "neuron")
        assert probe.off.values[0, 0].all()
