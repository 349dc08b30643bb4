"""Generation under a policy: heads are decided on the prompt and stay so for the answer."""

import numpy as np
import pytest
import torch

from headcount.heads import HeadSet
from headcount.interventions import Fixed, Random, Threshold
from headcount.measure import measure_heads
from headcount.models.instrument import instrument

NEW = 8
PROMPTS = [torch.randint(3, 256, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (12, 5)]


@pytest.fixture
def model(tiny):
    """Attends sharply, and has no token that ends an answer."""
    model = tiny(initializer_range=0.2, eos_token_id=None)
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(params=["ahon", "awft", "random"])
def policy(request, model):
    if request.param == "random":
        return Random(0.4, seed=1)
    table = measure_heads(model, PROMPTS, scores=[request.param])
    return Threshold(request.param, table[request.param].median().item())


def left_padded(prompts):
    width = max(map(len, prompts))
    tokens = torch.zeros(len(prompts), width, dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    for i, prompt in enumerate(prompts):
        tokens[i, width - len(prompt) :], mask[i, width - len(prompt) :] = torch.tensor(prompt), 1
    return tokens, mask


def generated(model, policy, prompts):
    """New tokens [prompt, NEW], and which heads were zeroed."""
    tokens, mask = left_padded(prompts)
    with instrument(model, policy=policy, scores=["ahon"]) as probe:
        out = model.generate(tokens, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    assert probe.scores.sizes["example"] == len(prompts)  # answers are not recorded
    return out[:, tokens.shape[1] :].tolist(), probe.zeroed.values


def recomputed(model, policy, prompt):
    """Greedy continuation without a cache: the whole text anew for each token."""
    tokens = list(prompt)
    with instrument(model, policy=policy), torch.no_grad():
        for _ in range(NEW):
            tokens.append(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax().item())
    return tokens[len(prompt) :]


def test_an_answer_keeps_the_heads_of_its_prompt(model, policy):
    for prompt in PROMPTS:
        (answer,), zeroed = generated(model, policy, [prompt])
        with instrument(model, policy=policy) as probe, torch.no_grad():
            model(torch.tensor([prompt]))
        np.testing.assert_array_equal(zeroed, probe.zeroed)
        heads = Fixed(HeadSet(np.argwhere(zeroed[0])))
        assert 0 < len(heads.heads) < 24
        assert answer == recomputed(model, heads, prompt)
        assert answer != recomputed(model, None, prompt)


def test_a_padded_batch_gives_each_prompts_own_answer(model, policy):
    answers, zeroed = generated(model, policy, PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        (alone,), zeroed_alone = generated(model, policy, [prompt])
        assert answers[i] == alone
        np.testing.assert_array_equal(zeroed[i : i + 1], zeroed_alone)
    assert not np.array_equal(zeroed[0], zeroed[1])


def test_without_a_policy_answers_are_the_models_own(model):
    tokens, mask = left_padded(PROMPTS)
    options = {"attention_mask": mask, "max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(tokens, **options)
    with instrument(model, scores="all") as probe:
        assert torch.equal(model.generate(tokens, **options), expected)
    assert probe.scores["num_tokens"].values.tolist() == [12, 5]
    assert torch.equal(model.generate(tokens, **options), expected)


def test_a_static_cache_gives_the_same_answer(model):
    policy = Random(0.4, seed=1)
    (answer,), _ = generated(model, policy, PROMPTS[:1])
    tokens, mask = left_padded(PROMPTS[:1])
    with instrument(model, policy=policy):
        out = model.generate(
            tokens,
            attention_mask=mask,
            max_new_tokens=NEW,
            do_sample=False,
            pad_token_id=0,
            cache_implementation="static",
            disable_compile=True,
        )
    assert out[0, tokens.shape[1] :].tolist() == answer


def test_each_prompt_of_a_block_is_decided_anew(model):
    policy = Random(0.4, seed=1)
    with instrument(model, policy=policy) as probe:
        for prompt in PROMPTS:
            model.generate(torch.tensor([prompt]), max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert probe.zeroed.sizes["example"] == 2
    for i, prompt in enumerate(PROMPTS):
        np.testing.assert_array_equal(probe.zeroed[i : i + 1], generated(model, policy, [prompt])[1])
