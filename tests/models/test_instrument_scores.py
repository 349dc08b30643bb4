"""Every score equals a plain loop over the model's own eager attention, alone and in padded batches."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headcount.models.instrument import instrument
from headcount.scores import get_score

FAMILIES = {
    "llama": {},
    "qwen2": {"num_key_value_heads": 4},
    "gpt2": {},
    "mistral": {"sliding_window": 8},
    "gemma2": {"head_dim": 16, "sliding_window": 8, "attn_logit_softcapping": 1.0, "query_pre_attn_scalar": 8},
    "gpt_oss": {
        "head_dim": 8,
        "sliding_window": 8,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
WINDOW = 8
SEED = 7
ROWS = [torch.randint(3, 256, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (30, 11, 1, 17)]


@pytest.fixture(params=FAMILIES)
def model(request, tiny):
    model = tiny(request.param, initializer_range=0.2, **FAMILIES[request.param])
    for layer in model.base_model.modules():
        if hasattr(layer, "sinks"):
            torch.nn.init.normal_(layer.sinks)
    return model


def attention_of(layer):
    """(module that gives values, its values [token, key-value head · head_dim], W [hidden, head · head_dim])."""
    if hasattr(layer, "attn"):  # GPT-2: query, key and value in one; weights stored transposed
        return layer.attn.c_attn, lambda out: out.chunk(3, dim=-1)[2], layer.attn.c_proj.weight.T
    return layer.self_attn.v_proj, lambda out: out, layer.self_attn.o_proj.weight


def reference(model, row):
    """score id → float64 [layer, head], by the definitions, in plain loops over eager attention weights."""
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    layers = model.base_model.h if hasattr(model.base_model, "h") else model.base_model.layers
    parts = [attention_of(layer) for layer in layers]
    values, hooks = [], []
    for projection, pick, _ in parts:
        hooks.append(projection.register_forward_hook(lambda _m, _a, out, pick=pick: values.append(pick(out)[0])))
    with torch.no_grad():
        weights = model(torch.tensor([row]), output_attentions=True).attentions
    found = [
        _layer(w[0].double().numpy(), v.double().numpy(), p[2].detach().double().numpy())
        for w, v, p in zip(weights, values, parts, strict=True)
    ]
    return {name: np.array([layer[name] for layer in found]) for name in found[0]}


def _layer(weights, values, projection):
    """``weights [head, query, key]``, ``values [token, key-value head · head_dim]``, ``projection [hidden, …]``."""
    heads, length, _ = weights.shape
    head_dim = projection.shape[1] // heads
    group = heads // (values.shape[1] // head_dim)
    raw = {name: [0.0] * heads for name in ("awft", "aeqd", "ftvvn", "avvn", "lthon", "ahon", "fhon")}
    for h in range(heads):
        v = values[:, (h // group) * head_dim :][:, :head_dim]
        slice_ = projection[:, h * head_dim : (h + 1) * head_dim]
        for i in range(length):
            output, entropy = np.zeros(head_dim), 0.0
            for j in range(i + 1):
                a = weights[h, i, j]
                output += a * v[j]
                entropy -= a * math.log(a) if a > 0 else 0.0
            sink = 1 - weights[h, i].sum()  # what the attention weights leave, one more outcome
            entropy -= sink * math.log(sink) if sink > 1e-5 else 0.0
            raw["awft"][h] += weights[h, i, 0] / length
            raw["aeqd"][h] += entropy / length
            raw["avvn"][h] += math.sqrt((v[i] ** 2).sum()) / length
            raw["ahon"][h] += math.sqrt((output**2).sum()) / length
            raw["fhon"][h] += math.sqrt(((slice_ @ output) ** 2).sum()) / length
            if i == length - 1:
                raw["lthon"][h] = math.sqrt((output**2).sum())
        raw["ftvvn"][h] = math.sqrt((v[0] ** 2).sum())
    mean = {name: sum(of_heads) / heads for name, of_heads in raw.items()}
    normalised = {
        f"{name}_ln": [x / mean[name] if mean[name] else math.nan for x in raw[name]] for name in raw if name != "lthon"
    }
    normalised["lthon_ln"] = [x / mean["ahon"] for x in raw["lthon"]]
    normalised["lthon_hn"] = [x / y for x, y in zip(raw["lthon"], raw["ahon"], strict=True)]
    return raw | normalised


def run(model, rows, side="right", extra=0):
    """Scores of every row in one padded batch, and the logits after each row's last token."""
    width = max(map(len, rows)) + extra
    tokens = torch.full((len(rows), width), 9)  # padding is an ordinary token, told apart by the mask alone
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        at = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        tokens[i, at], mask[i, at] = torch.tensor(row), 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with instrument(model, scores="all", seed=SEED) as probe, torch.no_grad():
        logits = model(tokens, attention_mask=mask, position_ids=positions).logits
    last = [len(row) - 1 if side == "right" else width - 1 for row in rows]
    return probe.scores, logits[torch.arange(len(rows)), last]


def assert_same(scores, expected):
    for name in expected.data_vars:
        np.testing.assert_allclose(scores[name], expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_every_score_equals_the_plain_loop(model):
    for row in ROWS:
        with instrument(model, scores="all") as probe, torch.no_grad():
            model(torch.tensor([row]))
        expected = reference(model, row)
        published = {name for name in probe.scores.data_vars if get_score(name).source.startswith("arXiv 2504.03889")}
        assert published == {*expected, "random"}
        for name, values in expected.items():
            measured = probe.scores[name].values[0]
            if len(row) == 1 and name == "aeqd_ln" and not hasattr(model.config, "num_local_experts"):
                assert np.isnan(measured).all()
                continue
            np.testing.assert_allclose(measured, values, rtol=1e-4, atol=1e-5, err_msg=f"{name}, {len(row)} tokens")


def test_padding_changes_neither_scores_nor_logits(model):
    alone = [run(model, [row])[0] for row in ROWS]
    with torch.no_grad():
        expected = torch.cat([model(torch.tensor([row])).logits[:, -1] for row in ROWS])
    for side in ("right", "left"):
        scores, logits = run(model, ROWS, side, extra=2)
        assert scores["num_tokens"].values.tolist() == [len(row) for row in ROWS]
        for i in range(len(ROWS)):
            assert_same(scores.isel(example=[i]), alone[i])
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def small(tiny):
    return tiny(num_hidden_layers=1, initializer_range=0.2)


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 16), min_size=1, max_size=3),
    side=st.sampled_from(["right", "left"]),
    extra=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_scores_do_not_depend_on_padding(small, lengths, side, extra, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, 256, (n,), generator=generator).tolist() for n in lengths]
    scores, _ = run(small, rows, side, extra)
    for i, row in enumerate(rows):
        assert_same(scores.isel(example=[i]), run(small, [row])[0])


def test_a_window_hides_the_first_token(tiny):
    # One head that attends uniformly: query i weighs the first token 1/(i + 1) inside the window of 8, then 0.
    # Its entropy is ln(i + 1) up to ln 8.
    model = tiny("mistral", sliding_window=WINDOW, num_hidden_layers=1)
    torch.nn.init.zeros_(model.model.layers[0].self_attn.q_proj.weight)
    with instrument(model, scores=["awft", "aeqd"]) as probe, torch.no_grad():
        model(torch.arange(3, 33)[None])
    awft = sum(1 / (i + 1) for i in range(WINDOW)) / 30
    aeqd = (sum(math.log(i + 1) for i in range(WINDOW)) + 22 * math.log(WINDOW)) / 30
    np.testing.assert_allclose(probe.scores["awft"], np.full((1, 1, 8), awft), rtol=1e-5)
    np.testing.assert_allclose(probe.scores["aeqd"], np.full((1, 1, 8), aeqd), rtol=1e-5)


def test_a_sink_takes_weight_and_counts_as_an_outcome(tiny):
    # Uniform logits of 0, the sink's too: query i has i + 2 outcomes of 1/(i + 2), one of them the sink.
    model = tiny("gpt_oss", num_hidden_layers=1, **(FAMILIES["gpt_oss"] | {"layer_types": ["full_attention"]}))
    attention = model.model.layers[0].self_attn
    for parameter in (attention.q_proj.weight, attention.q_proj.bias, attention.sinks):
        torch.nn.init.zeros_(parameter)
    with instrument(model, scores=["awft", "aeqd"]) as probe, torch.no_grad():
        model(torch.arange(3, 8)[None])
    awft = sum(1 / (i + 2) for i in range(5)) / 5
    aeqd = sum(math.log(i + 2) for i in range(5)) / 5
    np.testing.assert_allclose(probe.scores["awft"], np.full((1, 1, 8), awft), rtol=1e-5)
    np.testing.assert_allclose(probe.scores["aeqd"], np.full((1, 1, 8), aeqd), rtol=1e-5)
