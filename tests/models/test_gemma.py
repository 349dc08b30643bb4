"""A real model with sliding windows, one key-value head for all query heads, and norms of queries and keys: Gemma 3 270M."""

import numpy as np
import pytest
import torch

from headcount.measure import measure_heads
from headcount.models.instrument import instrument
from headcount.models.observe import units_of
from headcount.models.projection import output_projection
from headcount.policies import Fixed, Threshold
from tests.models.eager import eager_attention, plain_scores

pytestmark = pytest.mark.gemma

WINDOW = 512
SLIDING, FULL = 4, 5  # every sixth layer sees the whole text
TEXT = "Each head looks back over the text, and some of them find nothing there that they would need. " * 40


@pytest.fixture(scope="module")
def tokens(gemma):
    _, tokenizer = gemma
    return tokenizer(TEXT, return_tensors="pt")["input_ids"][:, : WINDOW + 88]


def test_it_is_what_its_package_says(gemma):
    model, tokenizer = gemma
    units = units_of(model)
    assert [layer.num_attention_heads for layer in units.layers] == [4] * 18
    assert [layer.num_key_value_heads for layer in units.layers] == [1] * 18
    assert model.config.sliding_window == WINDOW
    assert [kind == "full_attention" for kind in model.config.layer_types] == [(i + 1) % 6 == 0 for i in range(18)]
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<bos>", 2)
    assert model.config._name_or_path == "Gemma 3 270M (Q4_K_M)"
    assert not tokenizer.chat_template  # a base model


def test_it_predicts_english(gemma):
    model, tokenizer = gemma
    with torch.no_grad():
        logits = model(
            **tokenizer("The capital of Germany is Berlin. The capital of France is", return_tensors="pt")
        ).logits
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"


def test_scores_beyond_the_window_are_those_of_its_own_eager_attention(gemma, tokens):
    body = gemma[0].base_model
    layers = eager_attention(body, tokens)
    weights = {layer: layers[layer][1] for layer in (SLIDING, FULL)}
    assert (weights[SLIDING][:, WINDOW:, 0] == 0).all()  # the first token is out of sight
    assert (weights[FULL][:, WINDOW:, 0] > 0).all()
    with instrument(body, scores="all") as probe, torch.no_grad():
        body(tokens)
    for layer in (SLIDING, FULL):
        for name, expected in plain_scores(*layers[layer]).items():
            measured = probe.scores[name].values[0, layer]
            np.testing.assert_allclose(measured, expected, rtol=2e-4, atol=1e-5, err_msg=f"{name}, layer {layer}")


def test_a_layers_only_key_value_group_off_is_its_attention_off(gemma, tokens):
    body = gemma[0].base_model
    units = units_of(body)
    (heads,) = units.layers[SLIDING].members("group")
    assert units.layers[SLIDING].members("attention") == [heads] == [(0, 1, 2, 3)]
    with instrument(body, policy=Fixed([(SLIDING, head) for head in heads])) as probe, torch.no_grad():
        found = body(tokens).last_hidden_state
    assert probe.off.values.sum() == 4
    projection = output_projection(body.layers[SLIDING].self_attn)
    hook = projection.register_forward_pre_hook(lambda _, given: (torch.zeros_like(given[0]),))
    with torch.no_grad():
        expected = body(tokens).last_hidden_state
    hook.remove()
    with torch.no_grad():
        untouched = body(tokens).last_hidden_state
    size = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * size)
    assert (untouched - expected).abs().max() > 0.1 * size


@pytest.mark.parametrize("policy", [None, Threshold("ahon_ln", 0.5)], ids=["untouched", "per input"])
def test_answers_after_a_shared_text_longer_than_the_window_are_those_of_whole_passes(gemma, policy):
    from lm_eval.api.instance import Instance

    from headcount.evaluation.language_model import HeadcountLM

    model, tokenizer = gemma
    context, answers = TEXT[:2600], [" find nothing", " look"]
    lm = HeadcountLM(model, tokenizer=tokenizer, policy=policy)
    requests = [Instance("loglikelihood", {}, (context, answer), i) for i, answer in enumerate(answers)]
    found = [nats for nats, _ in lm.loglikelihood(requests)]
    expected = []
    for answer in answers:
        start, end = lm._encode_pair(context, answer)
        assert len(start) > WINDOW
        row = torch.tensor([start + end])
        with instrument(model, policy=policy), torch.no_grad():
            logits = model(row[:, :-1], logits_to_keep=len(end)).logits[0]
        expected.append(logits.float().log_softmax(-1).gather(1, row[0, -len(end) :, None]).sum().item())
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_generation_past_the_window_keeps_the_prompts_heads_off(gemma, tokens):
    model, _ = gemma
    policy, prompt = Fixed([(SLIDING, 1), (FULL, 2)]), tokens[:, :WINDOW]
    with instrument(model, policy=policy), torch.no_grad():
        answer = model.generate(prompt, max_new_tokens=4, do_sample=False, eos_token_id=None)
        without_cache = model.generate(prompt, max_new_tokens=4, do_sample=False, eos_token_id=None, use_cache=False)
    assert torch.equal(answer, without_cache)


def test_padding_counts_for_nothing_with_windows_either(gemma, tokens):
    model, _ = gemma
    long, short = tokens[0].tolist(), tokens[0, :70].tolist()
    together, alone = measure_heads(model, [long, short]), measure_heads(model, [short])
    for name in alone.data_vars:
        np.testing.assert_allclose(together[name][1], alone[name][0], rtol=1e-3, atol=1e-5, err_msg=name)
