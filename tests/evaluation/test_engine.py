import numpy as np
import pytest
import torch
from lm_eval.models.huggingface import HFLM

from headcount.errors import InputError
from headcount.evaluation.engine import run_plan
from headcount.evaluation.plan import ScoringPlan
from headcount.measure import measure_heads
from headcount.policies import Fixed, Random, Threshold

MAX_LENGTH = 40


def random_requests(count, seed=0):
    """Contexts of 1 to 60 tokens, half of them shared by several continuations of 1 to 6 tokens."""
    rng = np.random.default_rng(seed)
    requests = []
    while len(requests) < count:
        context = rng.integers(3, 256, rng.integers(1, 61)).tolist()
        for _ in range(rng.integers(1, 5)):
            requests.append((context, rng.integers(3, 256, rng.integers(1, 7)).tolist()))
    return requests[:count]


def by_lm_eval(model, tokenizer, requests, max_length=MAX_LENGTH):
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=max_length)
    return lm._loglikelihood_tokens([(None, *request) for request in requests], disable_tqdm=True)


def alone(model, plan, policy=None, **options):
    """One policy's answers, and the scores recorded meanwhile."""
    result = run_plan(model, plan, [policy], **options)
    return result.of_policies[0], result.scores


def assert_same(ours, theirs):
    np.testing.assert_allclose([nats for nats, _ in ours], [nats for nats, _ in theirs], atol=1e-4, rtol=0)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


def test_requests_with_one_input_share_it():
    # Inputs are context + continuation without its last token: (1 2), (1 2), (1 2) and (1 2 3).
    requests = [([1, 2], [3]), ([1, 2], [4]), ([1], [2, 9]), ([1, 2], [3, 4])]
    plan = ScoringPlan.from_requests(requests, max_length=10)
    assert plan.inputs == [[1, 2], [1, 2, 3]]
    assert plan.input_of == [0, 0, 0, 1]
    assert plan.continuations == [[3], [4], [2, 9], [3, 4]]
    assert plan.num_truncated == 0


def test_the_start_of_a_long_request_is_cut_as_lm_eval_does():
    # max_length 4: of 1 2 3 4 5 6 the last 5 tokens stay (2 3 4 5 6), the model reads all but the last. 8 9 10 11 12
    # fits: read are 8 9 10 11. The third has the input of the first, and is cut too; it counts once.
    requests = [([1, 2, 3, 4], [5, 6]), ([8, 9, 10, 11], [12]), ([7, 7, 2, 3, 4], [5, 9])]
    plan = ScoringPlan.from_requests(requests, max_length=4)
    assert plan.inputs == [[2, 3, 4, 5], [8, 9, 10, 11]]
    assert plan.input_of == [0, 1, 0]
    assert plan.num_truncated == 1


@pytest.mark.parametrize(("length", "message"), [(0, "of 0 tokens"), (5, "of 5 tokens .* between 1 and 4 ")])
def test_a_continuation_that_cannot_be_scored_is_refused(length, message):
    with pytest.raises(InputError, match=message):
        ScoringPlan.from_requests([([1], [2] * length)], max_length=4)


def test_a_continuation_as_long_as_the_positions_is_scored_without_context():
    plan = ScoringPlan.from_requests([([9, 1], [2, 3, 4, 5])], max_length=4)
    assert plan.inputs == [[1, 2, 3, 4]]  # 1 2 3 4 5 without the last


def test_an_empty_plan_gives_nothing(tiny):
    scored, scores = alone(tiny(), ScoringPlan.from_requests([], max_length=4), scores="awft")
    assert scored.loglikelihoods == []
    assert scored.share_off.shape == (0,)
    assert scores["awft"].shape == (0, 3, 8)


@pytest.mark.parametrize("batch_tokens", [1, 100, 4096])
def test_loglikelihoods_are_those_of_lm_eval(tiny, letters, batch_tokens):
    model, requests = tiny(), random_requests(60)
    requests += [requests[3], ([5], [6])]  # one asked for twice, one of a single token
    scored, _ = alone(model, ScoringPlan.from_requests(requests, MAX_LENGTH), batch_tokens=batch_tokens)
    assert_same(scored.loglikelihoods, by_lm_eval(model, letters, requests))


def test_the_greedy_flag_is_true_for_the_models_own_continuation(tiny, letters):
    model = tiny()
    context = [5, 6, 7]
    answer = model.generate(torch.tensor([context]), max_new_tokens=4, do_sample=False, eos_token_id=None)[
        0, 3:
    ].tolist()
    requests = [(context, answer), (context, [*answer[:3], (answer[3] + 1) % 256])]
    scored, _ = alone(model, ScoringPlan.from_requests(requests, MAX_LENGTH))
    assert [greedy for _, greedy in scored.loglikelihoods] == [True, False]
    assert_same(scored.loglikelihoods, by_lm_eval(model, letters, requests))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gemma2", {"final_logit_softcapping": 0.5, "head_dim": 8, "sliding_window": 16}),
        ("cohere", {"logit_scale": 3.0}),
        ("granite", {"logits_scaling": 0.1}),
    ],
)
def test_what_a_model_does_to_its_logits_still_happens(tiny, letters, family, changes):
    model, requests = tiny(family, **changes), random_requests(20, seed=1)
    scored, _ = alone(model, ScoringPlan.from_requests(requests, MAX_LENGTH), batch_tokens=200)
    assert_same(scored.loglikelihoods, by_lm_eval(model, letters, requests))


def test_a_model_whose_projection_is_not_found_is_scored_all_the_same(tiny, letters, monkeypatch):
    model, requests = tiny(), random_requests(20)
    monkeypatch.setattr(type(model), "get_output_embeddings", lambda self: None)
    scored, _ = alone(model, ScoringPlan.from_requests(requests, MAX_LENGTH))
    assert_same(scored.loglikelihoods, by_lm_eval(model, letters, requests))


def test_the_model_is_as_before(tiny):
    model, tokens = tiny(), torch.arange(3, 40)[None]
    before = model(tokens).logits
    run_plan(model, ScoringPlan.from_requests(random_requests(5), MAX_LENGTH), [None, Random(0.5)])
    assert torch.equal(model(tokens).logits, before)


@pytest.mark.parametrize("batch_tokens", [1, 90, 4096])
def test_random_zeroes_what_its_score_says_in_any_batch(tiny, batch_tokens):
    model, plan = tiny(), ScoringPlan.from_requests(random_requests(40), MAX_LENGTH)
    scored, _ = alone(model, plan, policy=Random(0.3), batch_tokens=batch_tokens)
    draws = measure_heads(model, plan.inputs, scores="random", seed=0)["random"].values  # [input, layer, head]
    np.testing.assert_array_equal(scored.share_off, (draws < 0.3).sum((1, 2)) / 24)
    assert len(set(scored.share_off)) > 5  # each input has a draw of its own


def test_answers_under_a_policy_do_not_depend_on_the_batch(tiny):
    model, plan = tiny(), ScoringPlan.from_requests(random_requests(40), MAX_LENGTH)
    one, _ = alone(model, plan, policy=Random(0.3), batch_tokens=1)
    many, _ = alone(model, plan, policy=Random(0.3), batch_tokens=4096)
    untouched, _ = alone(model, plan)
    assert_same(one.loglikelihoods, many.loglikelihoods)
    assert np.abs(np.subtract(one.loglikelihoods, untouched.loglikelihoods))[:, 0].max() > 0.01
    assert not untouched.share_off.any()


def test_fixed_heads_are_zeroed_on_every_input(tiny):
    model, plan = tiny(), ScoringPlan.from_requests(random_requests(10), MAX_LENGTH)
    scored, _ = alone(model, plan, policy=Fixed([(0, 1), (2, 7), (2, 3)]))
    assert scored.share_off.tolist() == [3 / 24] * len(plan.inputs)


def test_recorded_scores_are_those_of_measuring_the_inputs(tiny):
    model, plan = tiny(), ScoringPlan.from_requests(random_requests(30), MAX_LENGTH)
    _, recorded = alone(model, plan, scores="all", seed=5, batch_tokens=300)
    measured = measure_heads(model, plan.inputs, seed=5, batch_tokens=1000)
    assert list(recorded.data_vars) == list(measured.data_vars)
    for name in recorded.data_vars:
        np.testing.assert_allclose(recorded[name], measured[name], rtol=1e-4, atol=1e-5, err_msg=str(name))
    assert recorded["num_tokens"].values.tolist() == [len(row) for row in plan.inputs]


def test_a_threshold_zeroes_the_heads_beyond_it(tiny):
    model, plan = tiny(num_hidden_layers=1), ScoringPlan.from_requests(random_requests(30), MAX_LENGTH)
    scores = measure_heads(model, plan.inputs, scores="ahon_ln")["ahon_ln"].values
    # Halfway between two scores, so that rounding cannot turn a decision.
    values = np.sort(scores.ravel())
    cut = float(values[40] + values[41]) / 2
    scored, _ = alone(model, plan, policy=Threshold("ahon_ln", cut))
    np.testing.assert_array_equal(scored.share_off, (scores < cut).sum((1, 2)) / 8)


def test_nan_logits_of_the_untouched_model_are_an_error_that_names_the_layer(tiny):
    model = tiny()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[7, 0] = float("nan")
    plan = ScoringPlan.from_requests([([1, 2], [3])], MAX_LENGTH)
    with pytest.raises(InputError, match=r"NaN under no policy, first in decoder layer 1\. Use float32"):
        run_plan(model, plan)


def test_a_policy_with_nan_logits_is_given_up_and_the_others_are_not(tiny):
    model = tiny()
    broken = Threshold("ahon_ln", 1.0, share=0.5)
    plan = ScoringPlan.from_requests(random_requests(10), MAX_LENGTH)

    def poison(module, args, output):  # NaN wherever a head was zeroed: exactly 0 in the projection's input
        zeroed = args[0].view(*args[0].shape[:2], 8, -1).eq(0).all(-1)  # [batch, token, head]
        return output.masked_fill(zeroed.any(-1, keepdim=True), torch.nan)

    handle = model.model.layers[1].self_attn.o_proj.register_forward_hook(poison)
    untouched, given_up = run_plan(model, plan, [None, broken]).of_policies
    together = run_plan(model, plan, [broken, Threshold("ahon_ln", 1.0, share=0.4)]).of_policies  # which decide alike
    handle.remove()
    assert all("NaN under" in (of_policy.failure or "") for of_policy in together)
    assert untouched.failure is None
    assert np.isfinite([nats for nats, _ in untouched.loglikelihoods]).all()
    assert "NaN under ahon_ln:0.5, first in decoder layer 1" in given_up.failure


def test_progress_counts_inputs(tiny):
    plan = ScoringPlan.from_requests(random_requests(20), MAX_LENGTH)
    seen = []
    run_plan(tiny(), plan, [None], batch_tokens=100, progress=lambda *call: seen.append(call))
    assert seen[-1] == (len(plan.inputs), len(plan.inputs))
    assert seen == sorted(seen)
