"""What a cache may keep is its own: several at once, cut back, copied and reordered caches give each text its own numbers."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import Cache, DynamicCache, StaticCache
from transformers.cache_utils import QuantizedLayer

from headcount.errors import HeadcountError, InputError
from headcount.measure import measure_heads
from headcount.models.instrument import instrument
from headcount.policies import Fixed, Random, Threshold
from headcount.units import UnitSet

A, B, C, D = (torch.randint(3, 256, (1, 7), generator=torch.Generator().manual_seed(n)) for n in range(4))
MORE, OTHER = torch.tensor([[33, 34]]), torch.tensor([[90, 91, 92]])
WINDOW = {"sliding_window": 6}
NEW = 6


class Kept(QuantizedLayer):
    """A quantised layer that loses nothing, and keeps three tokens unquantised."""

    def __init__(self, *_, **__):
        super().__init__(residual_length=3)

    def _quantize(self, tensor, axis):
        return tensor.clone()

    def _dequantize(self, q_tensor):
        return q_tensor


CACHES = {
    "dynamic": lambda model: DynamicCache(config=model.config),
    "static": lambda model: StaticCache(config=model.config, max_cache_len=24),
    "quantised": lambda _: Cache(layer_class_to_replicate=Kept),
}


@pytest.fixture
def model(tiny):
    model = tiny(initializer_range=0.2, eos_token_id=None)
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(params=["llama", "gemma2"])
def family(request, tiny):
    options = {"llama": {}, "gemma2": WINDOW | {"head_dim": 8, "query_pre_attn_scalar": 8}}
    model = tiny(request.param, initializer_range=0.2, eos_token_id=None, **options[request.param])
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def median(model, score="ahon"):
    return Threshold(score, measure_heads(model, [*A.tolist(), *B.tolist()], scores=[score])[score].median().item())


def logits(model, tokens, cache):
    return model(tokens, past_key_values=cache).logits


def alone(model, policy, *texts, new=CACHES["dynamic"], **options):
    """The logits of each stretch of one text, read in a block of its own."""
    with instrument(model, policy=policy, **options):
        cache = new(model)
        return [logits(model, text, cache) for text in texts]


# Several caches


@pytest.mark.parametrize("decide", ["prompt", "running"])
@pytest.mark.parametrize("new", CACHES.values(), ids=CACHES)
def test_interleaved_caches_give_what_each_gives_alone(family, new, decide):
    policy = median(family)
    expected = (
        alone(family, policy, A, MORE, MORE, new=new, decide=decide),
        alone(family, policy, B, OTHER, MORE, new=new, decide=decide),
    )
    with instrument(family, policy=policy, decide=decide) as probe:
        one, two = new(family), new(family)
        found = [], []
        for texts in ((A, B), (MORE, OTHER), (MORE, MORE)):
            found[0].append(logits(family, texts[0], one))
            found[1].append(logits(family, texts[1], two))
    for i in range(2):
        for mine, theirs in zip(found[i], expected[i], strict=True):
            assert torch.equal(mine, theirs)
    for i, texts in enumerate(((A, MORE, MORE), (B, OTHER, MORE))):  # steps count for the text that they continue
        with instrument(family, policy=policy, decide=decide) as own:
            cache = new(family)
            for text in texts:
                logits(family, text, cache)
        np.testing.assert_array_equal(probe.off[i], own.off[0])
        assert probe.share_off[i] == own.share_off[0]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.lists(st.integers(0, 3), min_size=4, max_size=12), decide=st.sampled_from(["prompt", "running"]))
def test_caches_in_any_order_give_what_each_gives_alone(model, order, decide):
    policy, texts = median(model), [[text] + [MORE] * 12 for text in (A, B, C, D)]
    expected = [alone(model, policy, *texts[i][: order.count(i)], decide=decide) for i in range(4)]
    found = [[], [], [], []]
    with instrument(model, policy=policy, decide=decide):
        caches = [CACHES["dynamic"](model) for _ in range(4)]
        for i in order:
            found[i].append(logits(model, texts[i][len(found[i])], caches[i]))
    for mine, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_a_cache_that_the_model_makes_itself_is_known_too(model):
    policy = median(model)
    expected = alone(model, policy, A, MORE)[1]
    with instrument(model, policy=policy):
        cache = model(A).past_key_values
        (as_tuple,) = [part for part in model(B, return_dict=False) if isinstance(part, Cache)]
        assert torch.equal(logits(model, MORE, cache), expected)
        assert torch.equal(logits(model, MORE, as_tuple), alone_in(model, policy, B, MORE))


def alone_in(model, policy, *texts):
    """As ``alone``, of a copy of the model, so that it can be asked while a block is open."""
    return alone(copy.deepcopy(model), policy, *texts)[-1]


def test_prompts_read_elsewhere_are_refused(model):
    policy, outside, before = median(model), DynamicCache(), DynamicCache()
    logits(model, A, outside)
    with instrument(model, policy=Random(0.5)):
        logits(model, A, before)
    with instrument(model, policy=policy):
        logits(model, B, DynamicCache())
        for cache in (outside, before):
            with pytest.raises(InputError, match="did not run in this `with` block"):
                logits(model, MORE, cache)


def test_a_cache_that_somebody_else_went_on_with_is_refused(model):
    policy, cache, other = median(model), DynamicCache(), copy.deepcopy(model)
    with instrument(model, policy=policy):
        logits(model, A, cache)
        logits(other, MORE, cache)
        with pytest.raises(InputError, match="was changed since"):
            logits(model, MORE, cache)
        cache.crop(-2)
        assert torch.equal(logits(model, MORE, cache), alone(other, policy, A, MORE)[1])


def test_a_prompt_that_was_not_read_to_the_end_is_no_prompt(model):
    policy, cache = median(model), DynamicCache()
    with instrument(model, policy=policy):
        hook = model.lm_head.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            logits(model, A, cache)
        hook.remove()
        with pytest.raises(InputError, match="did not run in this `with` block"):
            logits(model, MORE, cache)


@pytest.mark.parametrize("new", [CACHES["dynamic"], CACHES["static"]], ids=["dynamic", "static"])
def test_a_cache_edited_by_hand_is_refused(model, new):
    with instrument(model, policy=median(model)):
        cache = new(model)
        logits(model, A, cache)
        cache.layers[-1].keys[0, 0, 3] += 1
        with pytest.raises(InputError, match="was changed since"):
            logits(model, MORE, cache)


def test_caches_of_an_old_form_are_refused(model):
    with instrument(model, policy=median(model)), pytest.raises(InputError, match="past_key_values is a tuple"):
        model(A, past_key_values=((torch.zeros(1, 2, 3, 8),) * 2,) * 3)


# Caches cut back, used again, copied and reordered


def test_a_cache_cut_back_to_after_its_prompt_goes_on(model):
    policy = median(model)
    expected = alone(model, policy, A, MORE)[1]
    with instrument(model, policy=policy):
        cache = DynamicCache()
        for text in (A, OTHER):
            logits(model, text, cache)
        cache.crop(-3)
        assert torch.equal(logits(model, MORE, cache), expected)
        cache.crop(-3)  # one token of the prompt is gone
        with pytest.raises(InputError, match="cut back to before the end"):
            logits(model, MORE, cache)


def test_running_averages_cannot_be_cut_back(model):
    with instrument(model, policy=median(model), decide="running"):
        cache = DynamicCache()
        for text in (A, OTHER):
            logits(model, text, cache)
        cache.crop(-1)
        with pytest.raises(InputError, match="cut back to before the end"):
            logits(model, MORE, cache)


@pytest.mark.parametrize("new", CACHES.values(), ids=CACHES)
def test_a_cache_that_was_reset_holds_another_text(model, new):
    policy = median(model)
    expected = alone(model, policy, B, MORE, new=new)
    with instrument(model, policy=policy):
        cache = new(model)
        logits(model, A, cache)
        cache.reset()
        if new is CACHES["quantised"]:
            cache = new(model)  # transformers leaves the length of such a layer as it was
        assert torch.equal(logits(model, B, cache), expected[0])
        assert torch.equal(logits(model, MORE, cache), expected[1])


@pytest.mark.parametrize("decide", ["prompt", "running"])
@pytest.mark.parametrize("new", [CACHES["dynamic"], CACHES["static"]], ids=["dynamic", "static"])
def test_a_copied_cache_goes_on_twice(family, new, decide):
    policy = median(family)
    with instrument(family, policy=policy, decide=decide):
        prompt = new(family)
        logits(family, A, prompt)
        found = [logits(family, text, copy.deepcopy(prompt)) for text in (MORE, OTHER)]
        found.append(logits(family, MORE, prompt))
    for text, mine in zip((MORE, OTHER, MORE), found, strict=True):
        assert torch.equal(mine, alone(family, policy, A, text, new=new, decide=decide)[1])


def test_a_copied_quantised_cache_is_right_or_refused(model):
    policy, new = median(model), CACHES["quantised"]
    with instrument(model, policy=policy):
        cache = new(model)
        logits(model, A, cache)
        try:
            found = logits(model, MORE, copy.deepcopy(cache))
        except InputError:
            return
    assert torch.equal(found, alone(model, policy, A, MORE, new=new)[1])


CHANGES = {
    "reordered": (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0, 3])), [2, 0, 0, 3]),
    "repeated": (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2, 3, 3]),
    "selected": (lambda cache: cache.batch_select_indices(torch.tensor([3, 1])), [3, 1]),
}


@pytest.mark.parametrize("decide", ["prompt", "running"])
@pytest.mark.parametrize(("change", "rows"), CHANGES.values(), ids=CHANGES)
def test_each_row_of_a_changed_cache_keeps_its_own_heads(family, change, rows, decide):
    policy, batch = median(family), torch.cat([A, B, C, D])
    new = torch.tensor([[33, 34 + i] for i in range(len(rows))])
    with instrument(family, policy=policy, decide=decide) as probe:
        cache = DynamicCache(config=family.config)
        logits(family, batch, cache)
        change(cache)
        found = [logits(family, new, cache), logits(family, new[:, :1], cache)]
    for i, row in enumerate(rows):
        expected = alone(family, policy, batch[row : row + 1], new[i : i + 1], new[i : i + 1, :1], decide=decide)[1:]
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine[i : i + 1], theirs, rtol=1e-4, atol=1e-5)
    assert probe.off.sizes["example"] == 4
    assert not np.array_equal(probe.off[0], probe.off[2])


def test_a_reordered_quantised_cache_is_right_or_refused(model):
    policy, batch, new = median(model), torch.cat([A, B]), CACHES["quantised"]
    expected = alone(model, policy, B, MORE, MORE[:, :1], MORE, new=new)
    for steps in ([], [MORE], [MORE, MORE[:, :1]]):
        with instrument(model, policy=policy):
            cache = new(model)
            for text in (batch, *(step.expand(2, -1) for step in steps)):
                logits(model, text, cache)
            cache.reorder_cache(torch.tensor([1, 0]))
            try:
                found = logits(model, [MORE, MORE[:, :1], MORE][len(steps)].expand(2, -1), cache)
            except InputError:
                continue
        torch.testing.assert_close(found[:1], expected[len(steps) + 1], rtol=1e-4, atol=1e-5)


# Generation


def left_padded(*prompts):
    width = max(prompt.shape[1] for prompt in prompts)
    tokens = torch.cat([torch.nn.functional.pad(prompt, (width - prompt.shape[1], 0)) for prompt in prompts])
    return tokens, (tokens > 0).long()


def generated(model, policy, *prompts, decide="prompt", **options):
    tokens, mask = left_padded(*prompts)
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0} | options
    with instrument(model, policy=policy, decide=decide):
        return model.generate(tokens, attention_mask=mask, **options)[:, tokens.shape[1] :].tolist()


def heads_of(model, policy, prompt):
    with instrument(model, policy=policy) as probe:
        model(prompt)
    return Fixed(UnitSet(np.argwhere(probe.off.values[0])))


WAYS = {
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "sampled": {"do_sample": True, "num_return_sequences": 3, "top_k": 5},
    "sampled beams": {"do_sample": True, "num_beams": 2, "top_k": 5},
    "static beams": {"num_beams": 3, "cache_implementation": "static", "disable_compile": True},
}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("build", [median, lambda _: Random(0.4, seed=1)], ids=["ahon", "random"])
def test_every_beam_keeps_the_heads_of_its_own_prompt(family, build, options):
    """Held to generation with the prompt's heads fixed, for which rows and beams are all alike."""
    policy, prompts = build(family), (A, B[:, :5])
    for prompt in prompts:
        torch.manual_seed(0)
        expected = generated(family, heads_of(family, policy, prompt), prompt, **options)
        torch.manual_seed(0)
        assert generated(family, policy, prompt, **options) == expected
    if not options.get("do_sample"):  # whose draws are the batch's
        together = generated(family, policy, *prompts, **options)
        apart = [row for prompt in prompts for row in generated(family, policy, prompt, **options)]
        assert together == apart


def test_running_decisions_follow_their_beams(family):
    """The log-probability of the answer that was found is that of reading it again, alone and without beams."""
    policy, options = median(family), {"num_beams": 4, "max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    tokens, mask = left_padded(A, B[:, :5])
    with instrument(family, policy=policy, decide="running"):
        found = family.generate(
            tokens, attention_mask=mask, return_dict_in_generate=True, output_scores=True, length_penalty=0.0, **options
        )
    for i, prompt in enumerate((A, B[:, :5])):
        answer = found.sequences[i, tokens.shape[1] :]
        steps = alone(family, policy, prompt, *(token[None, None] for token in answer[:-1]), decide="running")
        total = sum(step[0, -1].log_softmax(-1)[token] for step, token in zip(steps, answer, strict=True))
        torch.testing.assert_close(found.sequences_scores[i], total, rtol=1e-4, atol=1e-4)


def assistants(tiny):
    draft = tiny(initializer_range=0.2, seed=4, num_hidden_layers=1)
    draft.generation_config.eos_token_id = None
    return {"assistant_model": draft}, {"prompt_lookup_num_tokens": 3}, {"assistant_early_exit": 1}


def test_a_prompt_with_a_draft_is_refused_where_it_decides(model, tiny):
    policy, prompt = median(model), torch.cat([A, A], 1)
    for options in assistants(tiny):
        for decide in ("prompt", "running"):
            with pytest.raises(InputError, match="together with a draft"):
                generated(model, policy, prompt, decide=decide, **options)
    fixed = heads_of(model, policy, prompt)
    for options in assistants(tiny)[:2]:
        assert generated(model, fixed, prompt, **options) == generated(model, fixed, prompt)


def test_a_prompt_in_chunks_is_refused_where_it_decides(model):
    policy = median(model)
    for asked in ({"policy": policy}, {"scores": ["ahon"]}):
        with (
            instrument(model, **asked),
            pytest.raises(InputError, match="prefill_chunk_size=3 reads prompts in chunks"),
        ):
            model.generate(A, prefill_chunk_size=3, max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert not {"_prefill", "_get_candidate_generator"} & vars(model).keys()
    fixed = heads_of(model, policy, A)
    assert generated(model, fixed, A, prefill_chunk_size=3) == generated(model, fixed, A)


def test_layers_left_out_are_refused(model):
    with pytest.raises(HeadcountError, match="ran 1 of the model's 3 attention layers"):
        generated(model, Fixed([(0, 1)]), A, assistant_early_exit=1)


def test_padding_inside_a_continuation_is_refused_where_it_would_count(model):
    batch, new, mask = torch.cat([A, B]), MORE.expand(2, -1), torch.ones(2, 9)
    mask[1, -1] = 0
    for decide in ("prompt", "running"):
        with instrument(model, policy=median(model), decide=decide):
            cache = DynamicCache()
            logits(model, batch, cache)
            if decide == "running":
                with pytest.raises(InputError, match="pass none that is padding"):
                    model(new, attention_mask=mask, past_key_values=cache)
            found = model(new, attention_mask=torch.ones(2, 9), past_key_values=cache)
            assert found.logits.isfinite().all()
