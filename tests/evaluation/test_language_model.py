import lm_eval
import lm_eval.api.registry
import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from headcount.errors import InputError
from headcount.evaluation.language_model import HeadcountLM
from headcount.policies import Fixed, Random
from headcount.tasks import load_tasks, quiet

TEXT = "How many of your model's attention heads actually work? " * 4  # 224 characters


def instances(kind, arguments):
    return [Instance(request_type=kind, doc={}, arguments=args, idx=0) for args in arguments]


@pytest.fixture
def both(tiny, letters):
    """The tiny Llama as headcount's model of lm-eval, and as lm-eval's own."""
    model = tiny()
    return HeadcountLM(model, tokenizer=letters), HFLM(pretrained=model, tokenizer=letters, batch_size=1)


@pytest.fixture(scope="module")
def demo_lm(demo):
    model, tokenizer = demo
    return HeadcountLM(model, tokenizer=tokenizer)


@pytest.mark.demo
@pytest.mark.parametrize(
    ("task", "shots", "questions", "num_inputs"),
    [
        ("arc_easy", 0, 3, 10),  # 2, 4 and 4 inputs: choices of one token share theirs
        ("mmlu_anatomy", 5, 2, 2),  # four letters a question
        ("piqa", 0, 2, 4),  # two sentences a question
    ],
)
def test_the_demo_answers_a_benchmark_as_under_lm_eval(demo, demo_lm, task, shots, questions, num_inputs):
    model, tokenizer = demo
    with quiet():
        loaded = load_tasks([task], num_fewshot=shots, offline=True).tasks[task]
        loaded.build_all_requests(limit=questions, rank=0, world_size=1)
        theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1).loglikelihood(loaded.instances)
    ours = demo_lm.loglikelihood(loaded.instances)
    # Logits are float32; sums over a dozen tokens keep four decimals.
    np.testing.assert_allclose([nats for nats, _ in ours], [nats for nats, _ in theirs], atol=2e-4, rtol=1e-5)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert len(demo_lm.inputs_of("loglikelihood", loaded.instances)) == num_inputs


def test_an_empty_context_and_spaces_at_its_end_are_treated_as_by_lm_eval(both):
    ours, theirs = both
    requests = instances("loglikelihood", [("", "abc"), ("abc ", "def"), ("abc", " def"), ("abc  ", " d")])
    found, expected = ours.loglikelihood(requests), theirs.loglikelihood(requests)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert len(ours.inputs_of("loglikelihood", requests)) == 4 - 1  # "abc " + "def" and "abc" + " def" are one input


@pytest.mark.parametrize("max_length", [7, 50, 512])
def test_rolling_loglikelihoods_are_those_of_lm_eval(tiny, letters, max_length):
    model = tiny(max_position_embeddings=max_length)
    ours, theirs = HeadcountLM(model, tokenizer=letters), HFLM(pretrained=model, tokenizer=letters, batch_size=1)
    assert ours.max_length == theirs.max_length == max_length
    requests = instances("loglikelihood_rolling", [(TEXT,), ("ab",), (TEXT[:60],)])
    found, expected = ours.loglikelihood_rolling(requests), theirs.loglikelihood_rolling(requests)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # 224 tokens, each predicted in one window of max_length tokens: ⌈224 / max_length⌉ windows
    given = ours.respond("loglikelihood_rolling", requests, [None])
    assert len(given.inputs_of[0]) == -(-224 // max_length)
    assert len(given.inputs_of[1]) == 1
    assert {len(given.inputs[i]) for i in given.inputs_of[0]} == {min(max_length, 224)}


@pytest.mark.parametrize("batch_size", [1, 8])
def test_generation_is_that_of_lm_eval(tiny, letters, batch_size):
    model = tiny()
    ours = HeadcountLM(model, tokenizer=letters, generation_batch_size=batch_size)
    theirs = HFLM(pretrained=model, tokenizer=letters, batch_size=1)
    options = {"until": ["\n"], "max_gen_toks": 12, "do_sample": False}
    requests = instances("generate_until", [("The head", options), ("Of all the layers, the first", options)])
    answers = ours.generate_until(requests)
    assert answers == theirs.generate_until(requests)
    assert any(answers)
    given = ours.respond("generate_until", requests, [None])
    assert [len(given.inputs[i]) for (i,) in given.inputs_of] == [8, 28]
    assert given.of_policies[0].share_off.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("batch_size", [1, 8])
def test_generation_under_a_policy(tiny, letters, batch_size):
    model = tiny()
    heads = Fixed([(layer, head) for layer in range(2) for head in range(8)])
    lm = HeadcountLM(model, tokenizer=letters, policy=heads, generation_batch_size=batch_size)
    options = {"until": ["\n"], "max_gen_toks": 12}
    prompts = [("The head", options), ("Of all the layers, the first", options), ("The head", options)]
    answers = lm.generate_until(instances("generate_until", prompts))
    (given,) = lm.respond("generate_until", instances("generate_until", prompts), [heads]).of_policies
    assert given.responses == answers
    assert given.share_off.tolist() == [16 / 24] * 2
    assert given.heads_off == [[[layer, head] for layer in range(2) for head in range(8)]] * 2
    assert answers[0] == answers[2]
    with torch.no_grad():
        for layer in model.model.layers[:2]:
            layer.self_attn.o_proj.weight.zero_()  # the same as zeroing every head
    theirs = HFLM(pretrained=model, tokenizer=letters, batch_size=1)
    assert answers == theirs.generate_until(instances("generate_until", prompts))


def test_random_heads_of_a_prompt_do_not_depend_on_the_generation_batch(tiny, letters):
    options = {"until": [], "max_gen_toks": 4}
    requests = instances("generate_until", [(TEXT[:n], options) for n in (5, 20, 11, 40, 3)])
    found = []
    for size in (1, 2, 8):
        lm = HeadcountLM(tiny(), tokenizer=letters, generation_batch_size=size)
        given = lm.respond("generate_until", requests, [Random(0.3)])
        (of_policy,) = given.of_policies
        heads = [of_policy.heads_off[i] for (i,) in given.inputs_of]
        found.append((of_policy.responses, [of_policy.share_off[i] for (i,) in given.inputs_of], heads))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("decide", ["prompt", "every-pass"])
def test_beams_count_for_their_prompts(tiny, letters, decide):
    requests = [("The head", {"until": [], "max_gen_toks": 3}), (TEXT[:20], {"until": [], "max_gen_toks": 3})]
    zeroed = []
    for beams in (1, 2):
        asked = instances("generate_until", [(text, options | {"num_beams": beams}) for text, options in requests])
        lm = HeadcountLM(tiny(), tokenizer=letters, decide=decide)
        given = lm.respond("generate_until", asked, [Random(0.3)])
        zeroed.append([given.of_policies[0].heads_off[i] for (i,) in given.inputs_of])
        assert given.of_policies[0].share_off.shape == (2,)
    if decide == "prompt":
        assert zeroed[0] == zeroed[1]
        assert zeroed[0][0] != zeroed[0][1]


def test_a_prompt_cut_for_its_answer_is_still_found(tiny, letters):
    lm = HeadcountLM(tiny(max_position_embeddings=32), tokenizer=letters)
    options = {"until": [], "max_gen_toks": 10}
    prompts = [(TEXT[:50], options), (TEXT[:8], options), (TEXT[42:50], options)]
    given = lm.respond("generate_until", instances("generate_until", prompts), [Random(0.5)])
    # 32 positions less 10 for the answer: the last 22 tokens of the first prompt are read, the others whole
    assert [len(given.inputs[i]) for (i,) in given.inputs_of] == [22, 8, 8]
    assert given.num_truncated == 1


def test_what_would_be_read_is_told_without_reading(both, monkeypatch):
    lm, _ = both
    monkeypatch.setattr(type(lm.model), "forward", lambda *_, **__: pytest.fail("the model ran"))
    rows = lm.inputs_of("loglikelihood", instances("loglikelihood", [("ab", "c"), ("ab", "d")]))
    assert [len(row) for row in rows] == [2]
    rows = lm.inputs_of("loglikelihood_rolling", instances("loglikelihood_rolling", [("abc",)]))
    assert [len(row) for row in rows] == [3]  # the prefix token, a and b
    assert [len(row) for row in lm.inputs_of("generate_until", instances("generate_until", [("abc", {})]))] == [3]


def test_scores_are_recorded_one_example_an_input(both):
    lm, _ = both
    requests = instances("loglikelihood", [("ab", "c"), ("ab", "d"), ("abcd", "e")])
    given = lm.respond("loglikelihood", requests, [None], scores=["awft"])
    assert given.scores is not None
    assert given.scores["awft"].shape == (2, 3, 8)
    assert given.inputs_of == [[0], [0], [1]]


def test_an_empty_continuation_is_refused(both):
    with pytest.raises(InputError, match="continuation of 0 tokens"):
        both[0].loglikelihood(instances("loglikelihood", [("ab", "")]))


@pytest.mark.parametrize("kind", ["loglikelihood", "loglikelihood_rolling", "generate_until"])
def test_a_tokenizer_of_another_model_is_refused_where_its_ids_are_used(tiny, letters, kind):
    small = HeadcountLM(tiny(vocab_size=80), tokenizer=letters)  # "A" is 38, "z" is 95
    arguments = {"loglikelihood": ("A", "{}"), "loglikelihood_rolling": ("{}",), "generate_until": ("{}", {})}[kind]
    for text, within in (("ABC", True), ("ABz", False)):
        given = tuple(a.format(text) if isinstance(a, str) else {"max_gen_toks": 1, "until": ["Q"]} for a in arguments)
        request = Instance(kind, {}, given, 0)
        if within:
            getattr(small, kind)([request])
        else:
            with pytest.raises(InputError, match=r"has the token id 95, and the model knows 0…79"):
                getattr(small, kind)([request])


def test_it_is_registered_with_lm_eval():
    assert lm_eval.api.registry.get_model("headcount") is HeadcountLM


@pytest.mark.demo
def test_it_works_in_simple_evaluate(tiny, letters):
    model = tiny()
    lm = HeadcountLM(model, tokenizer=letters)
    with quiet():
        tasks = list(load_tasks(["piqa"], offline=True).tasks.values())
        no_index = TaskManager(include_defaults=False)
        ours = lm_eval.simple_evaluate(model=lm, tasks=tasks, limit=2, bootstrap_iters=0, task_manager=no_index)
        own = HFLM(pretrained=model, tokenizer=letters, batch_size=1)
        theirs = lm_eval.simple_evaluate(model=own, tasks=tasks, limit=2, bootstrap_iters=0, task_manager=no_index)
    assert ours["results"] == theirs["results"]
    for mine, other in zip(ours["samples"]["piqa"], theirs["samples"]["piqa"], strict=True):
        found, expected = ([nats for ((nats, _),) in sample["resps"]] for sample in (mine, other))
        np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.demo
def test_it_is_made_from_lm_evals_command_line_arguments(tiny, letters, tmp_path):
    tiny().save_pretrained(tmp_path)
    letters.save_pretrained(tmp_path)
    with quiet():
        tasks = list(load_tasks(["piqa"], offline=True).tasks.values())
        results = lm_eval.simple_evaluate(
            model="headcount", model_args=f"model={tmp_path},seed=3", tasks=tasks, limit=1, bootstrap_iters=0,
            task_manager=TaskManager(include_defaults=False),
        )  # fmt: skip
    assert results["results"]["piqa"]["sample_len"] == 1
