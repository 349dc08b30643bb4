"""Benchmark a model as it is and under policies, question by question."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from headcount.analysis import UntilDecided, accuracy_table, asking_order
from headcount.analysis.outcomes import main_metric
from headcount.calibration import Calibration
from headcount.errors import seed_of
from headcount.evaluation.benchmark import Answers, Benchmark
from headcount.models.batching import Progress, no_progress
from headcount.policies import BASELINE, Policy, check_policy, policy_list
from headcount.store.manifest import SHARD
from headcount.tasks import TaskSet
from headcount.units import KindId


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Outcomes of the baseline and of every policy on the same questions.

    Attributes:
        outcomes: one row a policy and question: ``policy``, ``score``, ``share_asked``, ``threshold``, ``task``,
            ``doc_id``, ``doc_hash``, one column a metric of lm-eval's (``acc``, …), ``loglikelihoods`` of the choices in
            nats, ``target``, ``gold_loglikelihood`` (of the likeliest right choice, nats; of a text, nats a token),
            ``kl_from_baseline`` (of the softmax over choices, nats), ``response`` (generation), ``share_off`` (mean
            over the question's inputs), ``heads_off`` (generation: the [layer, head] pairs that stayed off),
            ``num_inputs``, ``num_tokens``, ``items`` (JSON: what else lm-eval gathers a question). Whether a higher
            metric is better is in every row (``higher_is_better``, JSON, of the metrics of its task).
        metrics: one row a policy, task or group, and metric, aggregated as lm-eval does.
        sources: where each task's data came from.
        num_truncated: inputs whose start was cut to fit the model's positions.
        failures: policies that were given up, with the reason; their outcomes are left out.
        verdicts: with ``until_decided``, each policy's verdict as ``headcount.analysis.sequential_table`` gives it.
    """

    outcomes: pd.DataFrame
    metrics: pd.DataFrame
    sources: dict[str, str]
    num_truncated: int
    failures: dict[str, str] = field(default_factory=dict)
    verdicts: pd.DataFrame | None = None

    def __repr__(self) -> str:
        policies = ", ".join(self.outcomes["policy"].unique())
        questions = self.outcomes.groupby(["task", "doc_id"]).ngroups
        return f"<Evaluation: {questions} questions of {', '.join(self.outcomes['task'].unique())}; {policies}>"

    def _repr_html_(self) -> str:
        """What it says, and below it accuracy and change of each policy by the first metric, acc if there is one."""
        said = f"<p>{escape(repr(self)[1:-1])}</p>"
        metric = main_metric(self.outcomes)
        if metric is None:
            return said
        table = accuracy_table(self.outcomes, metric=metric)
        shown = ["policy", "share_asked", "share_realised", "accuracy", "change", "change_low", "change_high"]
        named = table.loc[:, shown].rename(columns={"accuracy": metric})
        return said + named.to_html(index=False, na_rep="–", float_format="{:.3f}".format, border=0)


def evaluate(
    model: PreTrainedModel,
    tasks: Sequence[str] | TaskSet,
    policies: Sequence[Policy] = (),
    *,
    tokenizer: PreTrainedTokenizerBase,
    num_fewshot: int | None = None,
    limit: float | None = None,
    chat_template: bool = False,
    batch_tokens: int | None = None,
    seed: int = 0,
    offline: bool | None = None,
    include_path: str | Path | None = None,
    decide: str = "prompt",
    calibration: Calibration | None = None,
    unit: KindId = "head",
    until_decided: UntilDecided | None = None,
    progress: Progress = no_progress,
    on_answers: Callable[[Answers], None] = lambda _: None,
) -> Evaluation:
    """Ask a benchmark's questions of the untouched model and under each policy.

    What policies share is computed once: the untouched model's pass serves every policy on an input up to the first
    layer in which a head is off under that policy, and a policy under which none is on an input has the baseline's answer.

    Arguments are those of ``Benchmark``, and:

    Args:
        until_decided: ask in random order, and stop asking under a policy as soon as it is known whether its fall is
            within a margin; None asks every question.
        on_answers: called with the answers to a part of the questions as soon as they exist: about a minute's work, and at
            most 256 questions (a look).

    Raises:
        InputError: two policies with one label, or an unusable option.
        TaskError: an unknown task, or data that cannot be had.
        ModelError: a model that cannot be measured.
    """
    benchmark = Benchmark(
        model, tasks, tokenizer=tokenizer, num_fewshot=num_fewshot, limit=limit, chat_template=chat_template,
        batch_tokens=batch_tokens, seed=seed, offline=offline, include_path=include_path, decide=decide,
        calibration=calibration, unit=unit,
    )  # fmt: skip
    policies = policy_list(policies, calibration)
    for policy in policies:
        check_policy(policy)
    seed = seed_of(seed)
    order = list(range(benchmark.num_questions))
    if until_decided is not None:
        order = asking_order(benchmark.num_questions, seed)
    asked: list[Policy | None] = [None, *policies]
    total = len(asked) * benchmark.num_inputs
    tables: list[pd.DataFrame] = []
    failures, done = {}, 0
    shard = SHARD if until_decided is None else until_decided.questions_a_look
    workload = benchmark.workload()
    for start in range(0, benchmark.num_questions, shard):
        look = order[start : start + shard]
        for part in workload.parts(look, policies=len(asked), most=shard):
            given = benchmark.ask(
                asked,
                [look[place] for place in part],
                progress=lambda now, _, done=done: progress(min(done + now, total), total),
            )
            on_answers(given)
            tables.append(given.outcomes)
            failures |= given.failures
            done += len(asked) * int(given.outcomes.loc[given.outcomes["policy"] == BASELINE, "num_inputs"].sum())
        finished = set(failures)
        if until_decided is not None:
            finished |= until_decided.decided(pd.concat(tables, ignore_index=True), benchmark.num_questions)
        asked = [None, *(policy for policy in policies if policy.label not in finished)]
        if policies and len(asked) == 1:
            break
    whole = pd.concat(tables, ignore_index=True)
    kept = [of_policy for name, of_policy in whole.groupby("policy", sort=False) if name not in failures]
    outcomes = pd.concat(kept, ignore_index=True)
    return Evaluation(
        outcomes=outcomes, metrics=benchmark.metrics(outcomes), sources=benchmark.task_set.sources,
        num_truncated=benchmark.num_truncated, failures=failures,
        verdicts=None if until_decided is None else until_decided.table(outcomes, benchmark.num_questions),
    )  # fmt: skip
