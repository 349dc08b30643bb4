from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import headcount as hc
from headcount.errors import InputError, TaskError
from headcount.evaluation.benchmark import Benchmark
from headcount.evaluation.evaluate import evaluate
from headcount.evaluation.language_model import HeadcountLM
from headcount.policies import Fixed, Random, Threshold
from headcount.resolving import resolve_policy
from headcount.tasks import load_tasks
from tests.calibrated import calibrated_on

COLUMNS = [
    "policy", "curve", "score", "share_asked", "threshold", "task", "doc_id", "doc_hash", "target", "loglikelihoods",
    "response", "gold_loglikelihood", "kl_from_baseline", "items", "heads_off", "share_off", "num_inputs", "num_tokens",
    "higher_is_better",
]  # fmt: skip


def test_one_row_a_policy_and_question_with_the_baseline_first(ask):
    policies = [Random(0.3), Threshold("awft", 0.5), Fixed([(0, 0), (2, 5)], name="two heads")]
    evaluation = ask(["sums"], policies)
    outcomes = evaluation.outcomes
    labels = ["baseline", "random:0.3", "awft@0.5", "two heads"]
    assert outcomes["policy"].tolist() == [label for label in labels for _ in range(7)]
    questions = [("sums_a", i) for i in range(5)] + [("sums_b", i) for i in range(2)]
    assert list(zip(outcomes["task"], outcomes["doc_id"], strict=True)) == questions * 4
    assert set(outcomes.columns) == {*COLUMNS, "acc", "acc_norm"}
    assert outcomes.groupby("policy")["score"].first().to_dict() == {
        "baseline": "", "random:0.3": "random", "awft@0.5": "awft", "two heads": "",
    }  # fmt: skip
    assert outcomes.drop_duplicates("policy")["share_asked"].tolist() == pytest.approx(
        [np.nan, 0.3, np.nan, np.nan], nan_ok=True
    )
    assert outcomes.drop_duplicates("policy")["threshold"].tolist() == pytest.approx(
        [np.nan, 0.3, 0.5, np.nan], nan_ok=True
    )
    assert outcomes.groupby(["task", "doc_id"])["doc_hash"].nunique().eq(1).all()
    assert outcomes["loglikelihoods"].map(len).eq(4).all()
    assert (outcomes[outcomes["policy"] == "baseline"]["share_off"] == 0).all()
    assert (outcomes[outcomes["policy"] == "two heads"]["share_off"] == 2 / 24).all()
    assert "7 questions of sums_a, sums_b; baseline, random:0.3" in repr(evaluation)


def test_inputs_and_tokens_of_a_question_are_counted(ask):
    outcomes = ask(["sums_a"]).outcomes
    # "sums_a 0+0 =" has 12 letters, then " 0", " 1", … without its last letter: one input of 13 tokens for all four
    assert outcomes["num_inputs"].tolist() == [1] * 5
    assert outcomes["num_tokens"].tolist() == [13] * 5
    assert outcomes["target"].tolist() == ["0", "1", "0", "1", "0"]  # i² modulo 4


def test_accuracy_is_that_of_the_largest_loglikelihood(ask):
    outcomes = ask(["sums"], [Random(0.5)]).outcomes
    best = outcomes["loglikelihoods"].map(np.argmax)
    np.testing.assert_array_equal(outcomes["acc"], best == outcomes["target"].astype(int))
    assert len(set(best)) > 1


def test_share_off_is_the_mean_over_a_questions_inputs(tiny, letters, own_tasks):
    model = tiny()
    tasks = load_tasks(["sums_a", "prose"], offline=True, include_path=own_tasks)
    benchmark = Benchmark(model, tasks, tokenizer=letters)
    draws = hc.measure_heads(model, benchmark.inputs(), scores="random")["random"].values
    shares = (draws < 0.3).sum((1, 2)) / 24
    outcomes = benchmark.ask([Random(0.3)]).outcomes
    assert benchmark.num_inputs == len(outcomes) == 8
    np.testing.assert_allclose(outcomes["share_off"], shares)


@pytest.mark.demo
def test_generation_is_evaluated(ask):
    outcomes = ask(["spell"], [Fixed([(layer, head) for layer in range(3) for head in range(8)], name="none")]).outcomes
    assert outcomes["exact_match"].tolist() == [0.0] * 6
    # five tokens are generated, of which those beyond the tokenizer's vocabulary have no letters
    assert outcomes["response"].map(len).max() in range(1, 6)
    assert outcomes["loglikelihoods"].isna().all()
    assert outcomes["share_off"].tolist() == [0.0] * 3 + [1.0] * 3
    assert outcomes["num_tokens"].tolist() == [16] * 6  # "Spell spell 0+0:"


def test_tasks_of_different_kinds_go_together(ask):
    outcomes = ask(["sums_b", "spell", "prose"], limit=2).outcomes
    assert outcomes["task"].tolist() == ["sums_b"] * 2 + ["spell"] * 2 + ["prose"] * 2
    assert outcomes["acc"].notna().tolist() == [True, True, False, False, False, False]


@pytest.mark.parametrize(
    "policies", [[Random(0.1), Random(0.1)], [Fixed([(0, 0)]), Fixed([(1, 1)])], [Fixed([(0, 0)], name="baseline")]]
)
def test_two_policies_of_one_name_are_refused(ask, policies):
    with pytest.raises(InputError, match=r"Two policies are called '(random:0.1|fixed|baseline)'"):
        ask(["sums_a"], policies)


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf"), 2.5])
def test_a_wrong_limit_is_refused(ask, limit):
    with pytest.raises(InputError, match=r"limit is a whole number of questions"):
        ask(["sums_a"], limit=limit)


def test_a_limit_beyond_the_questions_takes_them_all(ask):
    assert len(ask(["sums_a"], limit=1000).outcomes) == 5


def test_unknown_layers_and_tasks_are_refused(ask):
    with pytest.raises(InputError, match="layer 7"):
        ask(["sums_a"], [Random(0.1, exclude_layers=frozenset({7}))])
    with pytest.raises(TaskError, match="sums_a"):
        ask(["sums_aa"])


def test_answers_come_shard_by_shard(ask, monkeypatch):
    monkeypatch.setattr("headcount.evaluation.evaluate.SHARD", 3)
    seen, told = [], []
    evaluation = ask(
        ["sums"], [Random(0.1), Random(0.2)], on_answers=seen.append, progress=lambda *call: told.append(call)
    )
    assert [len(answers.outcomes) for answers in seen] == [9, 9, 3]
    shards = pd.concat([answers.outcomes for answers in seen])
    shards = shards.sort_values(["policy", "task", "doc_id"], ignore_index=True)
    pd.testing.assert_frame_equal(
        shards, evaluation.outcomes.sort_values(["policy", "task", "doc_id"], ignore_index=True)
    )
    assert told[-1] == (21, 21)
    assert told == sorted(told)


def test_questions_can_be_asked_for_by_index(tiny, letters, own_tasks):
    benchmark = Benchmark(tiny(), ["sums"], tokenizer=letters, offline=True, include_path=own_tasks)
    assert benchmark.questions == [*(("sums_a", i) for i in range(5)), ("sums_b", 0), ("sums_b", 1)]
    whole = benchmark.ask([None, Random(0.3)]).outcomes
    some = benchmark.ask([None, Random(0.3)], [6, 1]).outcomes
    assert list(zip(some["task"], some["doc_id"], strict=True)) == [("sums_b", 1), ("sums_a", 1)] * 2
    of_both = some.merge(whole, on=["policy", "task", "doc_id"], suffixes=("", "_whole"))
    for name in ("acc", "share_off", "num_tokens", "target"):
        assert of_both[name].tolist() == of_both[f"{name}_whole"].tolist()
    np.testing.assert_allclose(of_both["kl_from_baseline"], of_both["kl_from_baseline_whole"], atol=1e-6)
    with pytest.raises(InputError, match="no question 7; the benchmark has questions 0…6"):
        benchmark.ask(questions=[7])


def test_outcomes_say_more_than_right_or_wrong(ask):
    outcomes = ask(["sums"], [Random(0.3), Fixed([], name="nothing")]).outcomes
    base = outcomes[outcomes["policy"] == "baseline"].reset_index(drop=True)
    for policy in ("baseline", "random:0.3", "nothing"):
        rows = outcomes[outcomes["policy"] == policy].reset_index(drop=True)
        gold = [nats[int(target)] for nats, target in zip(rows["loglikelihoods"], rows["target"], strict=True)]
        assert rows["gold_loglikelihood"].tolist() == gold
        p, q = (np.stack(table["loglikelihoods"]) for table in (base, rows))
        p, q = (np.exp(nats) / np.exp(nats).sum(1, keepdims=True) for nats in (p, q))
        np.testing.assert_allclose(rows["kl_from_baseline"], (p * np.log(p / q)).sum(1), atol=1e-9)
        assert rows["kl_from_baseline"].gt(0).all() == (policy == "random:0.3")
    nothing = outcomes[outcomes["policy"] == "nothing"].reset_index(drop=True)
    assert nothing["loglikelihoods"].tolist() == base["loglikelihoods"].tolist()  # to the last bit


def test_metrics_come_from_saved_outcomes_alone(tiny, letters, own_tasks, tmp_path):
    tasks = load_tasks(["sums", "prose", "spell"], offline=True, include_path=own_tasks)
    benchmark = Benchmark(tiny(), tasks, tokenizer=letters)
    fresh = benchmark.ask([None, Random(0.5)]).outcomes
    fresh.to_parquet(tmp_path / "outcomes.parquet")
    saved = pd.read_parquet(tmp_path / "outcomes.parquet")
    expected = benchmark.metrics(fresh)
    assert {*expected["metric"]} == {"acc", "acc_norm", "word_perplexity", "bits_per_byte", "exact_match"}
    pd.testing.assert_frame_equal(
        benchmark.metrics(saved.sample(frac=1, random_state=0)).sort_values([*expected.columns[:3]], ignore_index=True),
        expected.sort_values([*expected.columns[:3]], ignore_index=True),
    )


def test_a_policy_whose_logits_are_nan_is_given_up(tiny, letters, own_tasks, monkeypatch):
    benchmark = Benchmark(tiny(), ["sums"], tokenizer=letters, offline=True, include_path=own_tasks)
    run_plan = HeadcountLM.respond.__globals__["run_plan"]

    def failing(*args, **options):
        result = run_plan(*args, **options)
        broken = replace(result.of_policies[1], failure="The model's logits are NaN under random:0.3.")
        return replace(result, of_policies=[result.of_policies[0], broken, result.of_policies[2]])

    monkeypatch.setitem(HeadcountLM.respond.__globals__, "run_plan", failing)
    answers = benchmark.ask([None, Random(0.3), Random(0.4)])
    assert answers.failures == {"random:0.3": "The model's logits are NaN under random:0.3."}
    assert answers.outcomes["policy"].unique().tolist() == ["baseline", "random:0.4"]


def test_policies_leave_no_trace_on_each_other(ask):
    both = ask(["sums_a", "spell"], [Random(0.5), Random(0.2)]).outcomes
    alone = ask(["sums_a", "spell"], [Random(0.2)]).outcomes
    for policy in ("baseline", "random:0.2"):
        found = both[both["policy"] == policy].reset_index(drop=True)
        pd.testing.assert_frame_equal(found, alone[alone["policy"] == policy].reset_index(drop=True))


def test_scores_can_be_recorded_in_the_same_pass(tiny, letters, own_tasks):
    model, tasks = tiny(), load_tasks(["sums_a"], offline=True, include_path=own_tasks)
    benchmark = Benchmark(model, tasks, tokenizer=letters)
    run = benchmark.ask(scores=["awft", "ahon_ln"])
    measured = hc.measure_heads(model, benchmark.inputs(), scores=["awft", "ahon_ln"])
    assert run.scores is not None
    for name in measured.data_vars:
        np.testing.assert_allclose(run.scores[name], measured[name], rtol=1e-4, atol=1e-6)


def test_scores_and_policies_read_the_calibration_that_is_given(tiny, letters, own_tasks, tmp_path):
    model, options = tiny(), {"tokenizer": letters, "offline": True, "include_path": own_tasks}
    calibration = calibrated_on(model, [list(range(3 + i, 60, 2)) for i in range(6)])
    calibration.save(tmp_path / "calibration")
    benchmark = Benchmark(model, ["sums_a"], calibration=calibration, **options)
    asked = benchmark.ask([None, Random(0.4, instead=hc.Mean())], scores=["devg"])
    measured = hc.measure_heads(model, benchmark.inputs(), scores=["devg"], calibration=calibration)
    assert asked.scores is not None
    np.testing.assert_allclose(asked.scores["devg"], measured["devg"], rtol=1e-4)
    policy = Threshold("devg", float(measured["devg"].median()))
    given = evaluate(model, ["sums_a"], [policy], calibration=calibration, **options)
    with_its_own = evaluate(model, ["sums_a"], [replace(policy, calibration=calibration)], **options)
    pd.testing.assert_frame_equal(given.outcomes, with_its_own.outcomes)
    requests = [request for task in benchmark.task_set.tasks.values() for request in task.instances]
    for given in (calibration, tmp_path / "calibration"):
        lm = HeadcountLM(model, tokenizer=letters, policy=policy.label, calibration=given)
        answers = HeadcountLM(model, tokenizer=letters, policy=replace(policy, calibration=calibration))
        assert lm.loglikelihood(requests) == answers.loglikelihood(requests)
    assert resolve_policy(policy.label, calibration=calibration).calibration is calibration
    with pytest.raises(InputError, match="devg needs a calibration"):
        Benchmark(model, ["sums_a"], **options).ask(scores=["devg"])
    with pytest.raises(InputError, match=f"{policy.label} needs a calibration"):
        evaluate(model, ["sums_a"], [policy], **options)


def test_progress_is_reported(ask):
    seen = []
    ask(["sums_a"], progress=lambda *call: seen.append(call))
    assert seen[-1] == (5, 5)


def test_another_seed_draws_other_examples_and_the_same_seed_the_same(tiny, letters, own_tasks, tmp_path):
    text = (own_tasks / "sums_a.yaml").read_text().replace("task: sums_a", "task: shots")
    (tmp_path / "shots.yaml").write_text(text + "training_split: test\nfewshot_split: test\n")
    model = tiny()

    def inputs(seed):
        options = {"include_path": tmp_path, "offline": True, "num_fewshot": 2}
        return Benchmark(model, ["shots"], tokenizer=letters, seed=seed, **options).inputs()

    assert inputs(0) == inputs(0)
    assert inputs(0) != inputs(1)


def test_answers_come_in_the_order_of_the_questions(tiny, letters, own_tasks):
    benchmark = Benchmark(tiny(), ["sums"], tokenizer=letters, offline=True, include_path=own_tasks)
    order = [6, 0, 5, 2]  # of two tasks: question 5 is the first of the second
    outcomes = benchmark.ask([None, Random(0.5)], order).outcomes
    asked = [benchmark.questions[number] for number in order]
    assert list(zip(outcomes["task"], outcomes["doc_id"], strict=True)) == asked * 2


def test_questions_are_asked_until_it_is_decided(tiny, letters, own_tasks, tmp_path):
    size = 200
    frame = pd.DataFrame({"question": [f"{i}+1" for i in range(size)], "answer": [i % 4 for i in range(size)]})
    frame.to_parquet(tmp_path / "many.parquet")
    text = (own_tasks / "sums_a.yaml").read_text().replace("task: sums_a", "task: many")
    text = text.replace(str(own_tasks / "sums_a.parquet"), str(tmp_path / "many.parquet"))
    (tmp_path / "many.yaml").write_text(text)
    rule = hc.UntilDecided(margin=0.2, questions_a_look=20)
    policies = [Fixed([], name="nothing"), Random(0.3)]
    options = {"tokenizer": letters, "offline": True, "include_path": tmp_path, "seed": 3}
    evaluation = evaluate(tiny(), ["many"], policies, until_decided=rule, **options)
    verdicts = evaluation.verdicts.set_index("policy")
    # A policy that changes nothing is known to be within 20 points long before all questions are asked.
    assert verdicts.loc["nothing", "verdict"] == "within"
    asked = evaluation.outcomes["policy"].value_counts()
    assert asked["nothing"] < 100
    assert asked["nothing"] == verdicts.loc["nothing", "num_questions"]
    assert asked["baseline"] == asked.max()
    order = evaluation.outcomes.loc[evaluation.outcomes["policy"] == "baseline", "doc_id"].tolist()
    assert order != sorted(order)
    again = evaluate(tiny(), ["many"], policies, until_decided=rule, **options)
    pd.testing.assert_frame_equal(again.outcomes, evaluation.outcomes)
    # Where the whole benchmark is asked, the verdict is the plain comparison of accuracies.
    change = verdicts.loc["random:0.3", "change"]
    if asked["random:0.3"] == size:
        assert verdicts.loc["random:0.3", "verdict"] == ("within" if change >= -0.2 else "beyond")


@pytest.mark.parametrize(
    ("tasks", "given", "message"),
    [
        (None, {}, "tasks are names of lm-eval tasks"),
        ("sums_a", {"policies": Random(0.1)}, "policies is a list"),
        ("sums_a", {"policies": ["random:0.1"]}, "A policy is a Threshold"),
        ("sums_a", {"policies": [None]}, "A policy is a Threshold"),
        ("sums_a", {"limit": "2"}, "limit is a number of questions"),
        ("sums_a", {"batch_tokens": "9"}, "batch_tokens is the number of tokens"),
        ("sums_a", {"batch_tokens": 9.5}, "batch_tokens is the number of tokens"),
        ("sums_a", {"seed": 1.5}, "A seed is a whole number"),
        ("sums_a", {"seed": 2**200}, "A seed is a whole number"),
    ],
)
def test_arguments_of_another_kind_are_refused(ask, tasks, given, message):
    with pytest.raises((InputError, TaskError), match=message):
        ask(tasks, **given)


def test_a_name_of_a_task_and_numbers_of_numpy_are_taken(ask):
    numbers = {"limit": np.int64(2), "seed": np.int64(3), "batch_tokens": np.int32(99)}
    found, expected = (
        ask("sums_a", [Random(0.3)], **numbers),
        ask(["sums_a"], [Random(0.3)], limit=2, seed=3, batch_tokens=99),
    )
    pd.testing.assert_frame_equal(found.outcomes, expected.outcomes)
