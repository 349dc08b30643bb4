"""Benchmark a model as it is and under policies, question by question."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr
from lm_eval.utils import handle_non_serializable, hash_string
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from headcount.errors import InputError
from headcount.evaluation.language_model import HeadcountLM
from headcount.interventions import Policy, Random, Threshold
from headcount.models.batching import Progress, data_fingerprint, no_progress
from headcount.tasks import TaskSet, load_tasks, quiet

BASELINE = "baseline"


@dataclass(frozen=True, kw_only=True)
class PolicyRun:
    """What one policy did on the questions of a benchmark."""

    outcomes: pd.DataFrame
    metrics: pd.DataFrame
    scores: xr.Dataset | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Outcomes of the baseline and of every policy on the same questions.

    Attributes:
        outcomes: one row a policy and question: ``policy``, ``score``, ``share_asked``, ``threshold``, ``task``,
            ``doc_id``, ``doc_hash``, one column a metric of lm-eval's (``acc``, …), ``loglikelihoods`` of the choices in
            nats, ``target``, ``share_zeroed`` (mean over the question's inputs), ``num_inputs``, ``num_tokens``.
        metrics: one row a policy, task or group, and metric, aggregated as lm-eval does.
        sources: where each task's data came from.
        num_truncated: inputs whose start was cut to fit the model's positions.
    """

    outcomes: pd.DataFrame
    metrics: pd.DataFrame
    sources: dict[str, str]
    num_truncated: int

    def __repr__(self) -> str:
        policies = ", ".join(self.outcomes["policy"].unique())
        questions = self.outcomes.groupby(["task", "doc_id"]).ngroups
        return f"<Evaluation: {questions} questions of {', '.join(self.outcomes['task'].unique())}; {policies}>"


class Benchmark:
    """The questions of some lm-eval tasks, asked of one model: prompts are built once and serve every policy.

    Args:
        model: from ``headcount.load``.
        tasks: lm-eval task or group names, or a TaskSet already loaded.
        tokenizer: the model's.
        num_fewshot: examples in each prompt; None for the task's own number.
        limit: questions a task (the first ones), or a share of them below 1.
        chat_template: put prompts into the model's chat template, as lm-eval's ``--apply_chat_template`` does.
        batch_tokens: tokens in a batch, padding included.
        seed: of few-shot sampling and of the ``random`` score.
        offline: True for the benchmark package only, False for the hub only, None for whichever can be had.
        include_path: folder with task files of your own.

    Raises:
        TaskError: an unknown task, or data that cannot be had.
        InputError: a chat template asked for that the tokenizer lacks, or no questions.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tasks: Sequence[str] | TaskSet,
        *,
        tokenizer: PreTrainedTokenizerBase,
        num_fewshot: int | None = None,
        limit: float | None = None,
        chat_template: bool = False,
        batch_tokens: int = 4096,
        seed: int = 0,
        offline: bool | None = None,
        include_path: str | Path | None = None,
    ) -> None:
        if limit is not None and not (0 < limit < 1 or (limit > 0 and float(limit).is_integer())):
            raise InputError(
                f"limit is a whole number of questions, or a share of them below 1, greater than 0; got {limit}."
            )
        if chat_template and not getattr(tokenizer, "chat_template", None):
            raise InputError(
                "The tokenizer has no chat template. Leave it off with --no-chat-template (chat_template=False)."
            )
        if not isinstance(tasks, TaskSet):
            tasks = load_tasks(
                tasks, num_fewshot=num_fewshot, offline=offline, include_path=include_path, seed=1234 + seed
            )
        self.task_set = tasks
        self.lm = HeadcountLM(model, tokenizer=tokenizer, batch_tokens=batch_tokens, seed=seed)
        self._requests: dict[str, list[Any]] = defaultdict(list)
        for task in tasks.tasks.values():
            size = len(task.eval_docs)
            count = None if limit is None else min(size, math.ceil(limit * size) if limit < 1 else int(limit))
            with quiet():
                task.build_all_requests(
                    limit=count,
                    rank=0,
                    world_size=1,
                    apply_chat_template=chat_template,
                    fewshot_as_multiturn=chat_template,
                    chat_template=self.lm.apply_chat_template if chat_template else None,
                    tokenizer_name=self.lm.tokenizer_name if chat_template else "",
                )
            for request in task.instances:
                self._requests[request.request_type] += [request] * (request.repeats or 1)
        self.num_truncated = 0
        self._inputs: list[list[int]] | None = None
        self._facts = {"num_fewshot": num_fewshot, "limit": limit, "chat_template": chat_template}

    def facts(self) -> dict[str, Any]:
        """What identifies the questions, for a run's manifest."""
        return {
            "sources": self.task_set.sources,
            **self._facts,
            "num_questions": self.num_questions,
            "num_inputs": self.num_inputs,
            "fingerprint": data_fingerprint(self.inputs()),
        }

    @property
    def num_inputs(self) -> int:
        return len(self.inputs())

    @property
    def num_questions(self) -> int:
        return len(
            {(request.task_name, request.doc_id) for requests in self._requests.values() for request in requests}
        )

    def inputs(self) -> list[list[int]]:
        """The distinct token-id rows that the questions make the model read (for generation, the prompts)."""
        if self._inputs is not None:
            return self._inputs
        rows: dict[tuple[int, ...], None] = {}
        self.lm.dry_run = True
        try:
            with quiet():
                for kind, requests in self._requests.items():
                    getattr(self.lm, kind)(requests)
                    rows |= dict.fromkeys(map(tuple, self.lm.inputs))
        finally:
            self.lm.dry_run = False
        self._inputs = [list(row) for row in rows]
        return self._inputs

    def run(
        self, policy: Policy | None = None, *, scores: Iterable[str] = (), progress: Progress = no_progress
    ) -> PolicyRun:
        """Ask every question under ``policy``; None asks the untouched model.

        Args:
            policy: which heads to zero.
            scores: ids to record meanwhile (log-likelihood tasks), what measuring needs in the same pass.
            progress: called with (inputs done, inputs in all).
        """
        lm = self.lm
        lm.policy, lm.record_scores, lm.progress = policy, list(scores), progress
        usage: dict[tuple[str, int], dict[tuple[str, int], tuple[float, int]]] = defaultdict(dict)
        recorded: list[xr.Dataset] = []
        with quiet():
            for kind, requests in self._requests.items():
                for request in requests:
                    request.resps = []
                for request, response in zip(requests, getattr(lm, kind)(requests), strict=True):
                    request.resps.append(response)
                for request, indices in zip(requests, lm.inputs_of, strict=True):
                    for index in indices:
                        used = float(lm.share_zeroed[index]), len(lm.inputs[index])
                        usage[request.task_name, request.doc_id][kind, index] = used
                self.num_truncated = max(self.num_truncated, lm.num_truncated)
                if lm.scores is not None and lm.record_scores:
                    recorded.append(lm.scores)
            rows, metrics = [], {}
            for name, task in self.task_set.tasks.items():
                task_rows, metrics[name] = _answers(name, task)
                rows += task_rows
            for name, group in self.task_set.groups.items():
                metrics[name] = group.aggregate(metrics)
        label = _labels(policy)
        for row in rows:
            used = usage[row["task"], row["doc_id"]].values()
            row["share_zeroed"] = sum(share for share, _ in used) / len(used)
            row["num_inputs"], row["num_tokens"] = len(used), sum(tokens for _, tokens in used)
        return PolicyRun(
            outcomes=pd.DataFrame([label | row for row in rows]),
            metrics=_metrics_frame(label["policy"], metrics),
            scores=xr.concat(recorded, "example") if recorded else None,
        )


def evaluate(
    model: PreTrainedModel,
    tasks: Sequence[str] | TaskSet,
    policies: Sequence[Policy] = (),
    *,
    tokenizer: PreTrainedTokenizerBase,
    num_fewshot: int | None = None,
    limit: float | None = None,
    chat_template: bool = False,
    batch_tokens: int = 4096,
    seed: int = 0,
    offline: bool | None = None,
    include_path: str | Path | None = None,
    progress: Progress = no_progress,
    on_policy: Callable[[PolicyRun], None] = lambda _: None,
) -> Evaluation:
    """Ask a benchmark's questions of the untouched model and under each policy.

    Arguments are those of ``Benchmark``; ``on_policy`` is called with each policy's results as soon as they exist.

    Raises:
        InputError: two policies with one label, or an unusable option.
        TaskError: an unknown task, or data that cannot be had.
        ModelError: a model that cannot be measured.
    """
    labels = [_labels(policy)["policy"] for policy in (None, *policies)]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise InputError(f"Two policies are called {twice[0]!r}. Give each a name of its own.")
    benchmark = Benchmark(
        model, tasks, tokenizer=tokenizer, num_fewshot=num_fewshot, limit=limit, chat_template=chat_template,
        batch_tokens=batch_tokens, seed=seed, offline=offline, include_path=include_path,
    )  # fmt: skip
    runs = []
    for policy in (None, *policies):
        runs.append(benchmark.run(policy, progress=progress))
        on_policy(runs[-1])
    return Evaluation(
        outcomes=pd.concat([run.outcomes for run in runs], ignore_index=True),
        metrics=pd.concat([run.metrics for run in runs], ignore_index=True),
        sources=benchmark.task_set.sources,
        num_truncated=benchmark.num_truncated,
    )


def _labels(policy: Policy | None) -> dict[str, Any]:
    nan = float("nan")
    if policy is None:
        return {"policy": BASELINE, "score": "", "share_asked": nan, "threshold": nan}
    if isinstance(policy, Random):
        return {"policy": policy.label, "score": "random", "share_asked": policy.share, "threshold": policy.share}
    if isinstance(policy, Threshold):
        share = nan if policy.share is None else policy.share
        return {"policy": policy.label, "score": policy.score, "share_asked": share, "threshold": policy.threshold}
    return {"policy": policy.label, "score": "", "share_asked": nan, "threshold": nan}


def _answers(name: str, task: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Each question's metrics, and the task's aggregated ones, from the responses that its requests hold.

    Follows lm-eval's ``evaluate``: filters, ``process_results`` and aggregation are the task's own.
    """
    for request in task.instances:
        request.filtered_resps = {}
    task.apply_filters()
    of_question: dict[int, list[Any]] = defaultdict(list)
    for request in task.instances:
        of_question[request.doc_id].append(request)
    rows: dict[int, dict[str, Any]] = {}
    values: dict[str, list[Any]] = defaultdict(list)
    for filter_name in task.instances[0].filtered_resps:
        for doc_id, requests in of_question.items():
            requests.sort(key=lambda request: request.idx)
            doc = requests[0].doc
            responses = [request.filtered_resps[filter_name] for request in requests]
            row = rows.setdefault(doc_id, _question(name, doc_id, task, doc, requests))
            for metric, value in task.process_results(doc, responses).items():
                values[f"{metric},{filter_name}"].append(value)
                if isinstance(value, bool | int | float):
                    row[metric if filter_name == "none" else f"{metric},{filter_name}"] = float(value)
    aggregations = task.aggregation()
    metrics: dict[str, Any] = {"name": name, "alias": name, "sample_len": len(of_question)}
    for key, of_metric in values.items():
        metric, filter_name = key.split(",", 1)
        metrics[key] = aggregations[metric](of_metric)
        metrics[f"{metric}_stderr,{filter_name}"] = "N/A"
    return list(rows.values()), metrics


def _question(name: str, doc_id: int, task: Any, doc: Any, requests: list[Any]) -> dict[str, Any]:
    scored = [request.resps[0] for request in requests if isinstance(request.resps[0], tuple)]
    return {
        "task": name,
        "doc_id": int(doc_id),
        "doc_hash": hash_string(json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False)),
        "target": str(task.doc_to_target(doc)),
        "loglikelihoods": [float(nats) for nats, _ in scored] or None,
        "response": None if scored else str(requests[0].resps[0]),
    }


def _metrics_frame(policy: str, metrics: dict[str, dict[str, Any]]) -> pd.DataFrame:
    rows = []
    for task, of_task in metrics.items():
        for key, value in of_task.items():
            metric, _, filter_name = key.partition(",")
            if filter_name and not metric.endswith("_stderr") and isinstance(value, int | float):
                label = metric if filter_name == "none" else key
                rows.append({"policy": policy, "task": task, "metric": label, "value": float(value)})
    return pd.DataFrame(rows, columns=["policy", "task", "metric", "value"])
