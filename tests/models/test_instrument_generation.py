"""Generation under a policy: heads are decided on the prompt and stay so for the answer."""

import numpy as np
import pytest
import torch

import headcount as hc
from headcount.errors import InputError
from headcount.measure import measure_heads
from headcount.models.instrument import instrument
from headcount.policies import Fixed, Random, Threshold
from headcount.scores import registry
from headcount.units import UnitSet
from tests.models.families import build

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
    return out[:, tokens.shape[1] :].tolist(), probe.off.values


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
        np.testing.assert_array_equal(zeroed, probe.off)
        heads = Fixed(UnitSet(np.argwhere(zeroed[0])))
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
    assert probe.off.sizes["example"] == 2
    for i, prompt in enumerate(PROMPTS):
        np.testing.assert_array_equal(probe.off[i : i + 1], generated(model, policy, [prompt])[1])


def decided_at_every_token(model, policy, prompt):
    """New tokens and zeroed heads [pass, layer, head], by reading the whole text so far anew for each token."""
    tokens, zeroed = list(prompt), []
    with instrument(model, policy=policy, decide="every-pass") as probe, torch.no_grad():
        for _ in range(NEW):
            tokens.append(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax().item())
        zeroed = probe.off.values
    return tokens[len(prompt) :], zeroed


def test_every_pass_decides_on_the_whole_text(model, policy):
    tokens, mask = left_padded(PROMPTS)
    with instrument(model, policy=policy, decide="every-pass") as probe:
        out = model.generate(
            tokens, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0, use_cache=False
        )
    passes = probe.off.values.reshape(NEW, len(PROMPTS), 3, 8)
    for i, prompt in enumerate(PROMPTS):
        answer, zeroed = decided_at_every_token(model, policy, prompt)
        assert out[i, tokens.shape[1] :].tolist() == answer
        np.testing.assert_array_equal(passes[:, i], zeroed)


def test_every_pass_refuses_a_cache(model, policy):
    with (
        instrument(model, policy=policy, decide="every-pass"),
        pytest.raises(InputError, match="use_cache=False"),
    ):
        model.generate(torch.tensor(PROMPTS[:1]), max_new_tokens=2, do_sample=False, pad_token_id=0)


@pytest.mark.parametrize("score", ["ahon", "ahon_ln", "awft", "aeqd", "avvn", "ftvvn", "lthon", "fhon"])
def test_running_averages_are_those_of_the_whole_text(tiny, score):
    """In a model of one layer nothing earlier is zeroed, so that the running measurements are the whole text's."""
    model = tiny(initializer_range=0.2, eos_token_id=None, num_hidden_layers=1)
    model.generation_config.eos_token_id = None
    policy = Threshold(score, measure_heads(model, PROMPTS, scores=[score])[score].median().item() + 1e-4)
    tokens, mask = left_padded(PROMPTS)
    options = {"attention_mask": mask, "max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    steps = []
    with instrument(model, policy=policy, decide="running") as probe:
        add = probe._continue
        probe._continue = lambda *step: (steps.append(step[-1]), add(*step))
        out = model.generate(tokens, **options)
        prompt_zeroed = probe._passes[0].shares[0]
    texts = out[:, : tokens.shape[1] + NEW - 1]
    for i, prompt in enumerate(PROMPTS):
        text = texts[i, tokens.shape[1] - len(prompt) :].tolist()
        whole = [text[:end] for end in range(len(prompt), len(text) + 1)]
        table = measure_heads(model, whole, scores=[score])[score].values[:, 0]  # [step, head]
        expected = table < policy.threshold if score != "awft" else table > policy.threshold
        assert prompt_zeroed[i] == expected[0].sum() / 8
        np.testing.assert_array_equal(np.stack([step[i, 0] for step in steps]), expected[1:])
        np.testing.assert_array_equal(probe.off.values[i, 0], expected.all(0))
        np.testing.assert_allclose(probe.share_off[i], expected.mean())


def test_running_decisions_of_a_padded_batch_are_those_of_each_prompt_alone(model, policy):
    def answers(prompts):
        tokens, mask = left_padded(prompts)
        with instrument(model, policy=policy, decide="running") as probe:
            out = model.generate(tokens, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
        return out[:, tokens.shape[1] :].tolist(), probe.off.values, probe.share_off

    together, zeroed, shares = answers(PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        (alone,), zeroed_alone, share_alone = answers([prompt])
        assert together[i] == alone
        np.testing.assert_array_equal(zeroed[i : i + 1], zeroed_alone)
        np.testing.assert_allclose(shares[i], share_alone[0])


def test_running_averages_under_a_window_forget_what_left_it(tiny):
    model = tiny("mistral", initializer_range=0.2, eos_token_id=None, num_hidden_layers=1, sliding_window=8)
    model.generation_config.eos_token_id = None
    policy = Threshold("awft", measure_heads(model, PROMPTS[:1], scores=["awft"])["awft"].median().item() + 1e-4)
    steps, tokens = [], torch.tensor(PROMPTS[:1])
    with instrument(model, policy=policy, decide="running") as probe:
        add = probe._continue
        probe._continue = lambda *step: (steps.append(step[-1]), add(*step))
        out = model.generate(tokens, max_new_tokens=NEW, do_sample=False, pad_token_id=0)[0, :-1].tolist()
    whole = [out[:end] for end in range(13, len(out) + 1)]
    expected = measure_heads(model, whole, scores=["awft"])["awft"].values[:, 0] > policy.threshold
    np.testing.assert_array_equal(np.stack([step[0, 0] for step in steps]), expected)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_oss"])
def test_a_static_cache_changes_nothing(family):
    model = build(family)
    model.generation_config.eos_token_id = None
    tokens, mask = left_padded(PROMPTS)
    options = {"attention_mask": mask, "max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    policy = Threshold("awft", 0.5)
    with instrument(model, policy=policy, scores="all") as dynamic:
        expected = model.generate(tokens, **options)
    with instrument(model, policy=policy, scores="all") as static:
        found = model.generate(tokens, cache_implementation="static", **options)
    assert torch.equal(found, expected)
    np.testing.assert_array_equal(static.off, dynamic.off)
    for name, values in dynamic.scores.items():
        np.testing.assert_allclose(static.scores[name], values, rtol=1e-5, atol=1e-6, err_msg=str(name))


def test_an_unknown_way_to_decide_is_refused(model):
    with (
        pytest.raises(InputError, match="decide is one of prompt, running, every-pass, not 'sometimes'"),
        instrument(model, decide="sometimes"),
    ):
        pass


def test_running_refuses_scores_of_whole_tensors(model, monkeypatch):
    for name in ("_SCORES", "_NAMES"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))

    @hc.score("tensor_score", name="x", needs=["output"], inactive_when="low", unit="1", source="a test")
    def tensor_score(m):
        return m.token_mean(m.output.norm(dim=-1)[..., None])[..., 0]

    with (
        instrument(model, policy=Threshold("tensor_score", 1.0), decide="running"),
        pytest.raises(InputError, match="reads output needs a whole text at once"),
    ):
        model.generate(torch.tensor(PROMPTS[:1]), max_new_tokens=2, do_sample=False, pad_token_id=0)
