"""From a model's responses to rows of per-question outcomes, and from saved rows back to lm-eval's aggregated metrics."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from lm_eval.utils import handle_non_serializable, hash_string

from headcount.interventions import Policy, Random, Threshold
from headcount.tasks import TaskSet

BASELINE = "baseline"


def labels(policy: Policy | None) -> dict[str, Any]:
    """The columns by which an outcome names its policy; None is the untouched model."""
    nan = float("nan")
    if policy is None:
        return {"policy": BASELINE, "score": "", "share_asked": nan, "threshold": nan}
    if isinstance(policy, Random):
        return {"policy": policy.label, "score": "random", "share_asked": policy.share, "threshold": policy.share}
    if isinstance(policy, Threshold):
        share = nan if policy.share is None else policy.share
        return {"policy": policy.label, "score": policy.score, "share_asked": share, "threshold": policy.threshold}
    return {"policy": policy.label, "score": "", "share_asked": nan, "threshold": nan}


def answers(name: str, task: Any, requests: Iterable[Any], num_tokens: Callable[[str], int]) -> list[dict[str, Any]]:
    """One row a question of ``task``, from the responses that its ``requests`` (lm-eval Instances) hold.

    Filters and ``process_results`` are the task's own, as in lm-eval's ``evaluate``. A metric that is one number a
    question becomes a column (``exact_match,strict-match`` where a filter other than ``none`` gave it); what else a
    task gathers for its aggregation goes as JSON into ``items``.

    ``gold_loglikelihood``, nats, is that of the likeliest right choice, of the continuation, or, where a question is a
    text (``loglikelihood_rolling``), of the text divided by its ``num_tokens``.
    """
    requests = list(requests)
    for request in requests:
        request.filtered_resps = {}
    for ensemble in task._filters:
        ensemble.apply(requests)
    of_question: dict[int, list[Any]] = defaultdict(list)
    for request in requests:
        of_question[request.doc_id].append(request)
    rows = []
    for doc_id, asked in of_question.items():
        asked.sort(key=lambda request: request.idx)
        doc = asked[0].doc
        row, items = _question(name, doc_id, task, doc, asked), {}
        if task.OUTPUT_TYPE == "loglikelihood_rolling":
            tokens = sum(num_tokens(request.args[0]) for request in asked)
            row["gold_loglikelihood"] = sum(float(request.resps[0]) for request in asked) / max(tokens, 1)
        for filter_name in asked[0].filtered_resps:
            responses = [request.filtered_resps[filter_name] for request in asked]
            for metric, value in task.process_results(doc, responses).items():
                key = metric if filter_name == "none" else f"{metric},{filter_name}"
                if isinstance(value, bool | int | float | np.number):
                    row[key] = float(value)
                else:
                    items[key] = value
        row["items"] = json.dumps(items, default=handle_non_serializable) if items else None
        rows.append(row)
    return rows


def _question(name: str, doc_id: int, task: Any, doc: Any, requests: list[Any]) -> dict[str, Any]:
    nats = [float(request.resps[0][0]) for request in requests if isinstance(request.resps[0], tuple)]
    gold = _gold(task, doc, len(nats)) if task.OUTPUT_TYPE == "multiple_choice" else [0] if nats else []
    return {
        "task": name,
        "doc_id": int(doc_id),
        "doc_hash": hash_string(json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False)),
        "target": str(task.doc_to_target(doc)),
        "loglikelihoods": nats or None,
        "gold_loglikelihood": max((nats[i] for i in gold), default=math.nan),
        "response": None if nats else str(requests[0].resps[0]),
    }


def _gold(task: Any, doc: Any, num_choices: int) -> list[int]:
    """Indices of the right choices, as lm-eval's ``process_results`` finds them; of several the likeliest counts."""
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(gold, str):
        choices = task.doc_to_choice(doc)
        gold = choices.index(gold) if gold in choices else -1
    return [i for i in (gold if isinstance(gold, list) else [gold]) if isinstance(i, int) and 0 <= i < num_choices]


def with_divergences(outcomes: pd.DataFrame) -> pd.DataFrame:
    """``outcomes`` with the column ``kl_from_baseline``: KL(baseline ‖ policy), in nats, of the answer distribution.

    The answer distribution of a question is the softmax of its choices' log-likelihoods. NaN where a question has
    fewer than two choices, or where the table has no baseline for it.
    """
    base = outcomes[outcomes["policy"] == BASELINE].set_index(["task", "doc_id"])["loglikelihoods"].to_dict()
    divergences = [
        divergence(base.get((task, doc_id)), nats)
        for task, doc_id, nats in zip(outcomes["task"], outcomes["doc_id"], outcomes["loglikelihoods"], strict=True)
    ]
    return outcomes.assign(kl_from_baseline=np.array(divergences, dtype=float))


def divergence(base: Sequence[float] | None, other: Sequence[float] | None) -> float:
    """KL(base ‖ other) of the softmaxes of two lists of log-likelihoods, in nats; NaN below two choices.

    >>> round(divergence([0.0, 0.0], [0.0, math.log(3)]), 6)  # ½ ln(½ ÷ ¼) + ½ ln(½ ÷ ¾)
    0.143841
    """
    if base is None or other is None or len(base) != len(other) or len(base) < 2:
        return math.nan
    p, q = (np.asarray(nats, dtype=float) - np.logaddexp.reduce(nats) for nats in (base, other))
    return max(0.0, float((np.exp(p) * (p - q)).sum()))


def aggregate(outcomes: pd.DataFrame, task_set: TaskSet) -> pd.DataFrame:
    """lm-eval's own aggregation of saved outcomes: one row a policy, task or group, and metric.

    Returns:
        Columns policy, task, metric, value. Groups weigh their tasks as lm-eval does.
    """
    rows = []
    for policy, of_policy in outcomes.groupby("policy", sort=False):
        found: dict[str, dict[str, Any]] = {}
        for name, of_task in of_policy.groupby("task", sort=False):
            found[str(name)] = _aggregate_task(str(name), task_set.tasks[str(name)], of_task)
        for name, group in task_set.groups.items():
            if all(leaf.task_name in found for leaf in group.get_all_tasks()):
                found[name] = group.aggregate(found)
        for name, metrics in found.items():
            rows += [
                (policy, name, key.removesuffix(",none"), float(value))
                for key, value in metrics.items()
                if "," in key and not key.partition(",")[0].endswith("_stderr") and isinstance(value, int | float)
            ]
    return pd.DataFrame(rows, columns=["policy", "task", "metric", "value"])


def _aggregate_task(name: str, task: Any, rows: pd.DataFrame) -> dict[str, Any]:
    rows = rows.sort_values("doc_id", kind="stable")
    aggregations = task.aggregation()
    items = [json.loads(text) if isinstance(text, str) else {} for text in rows["items"]]
    metrics: dict[str, Any] = {"name": name, "alias": name, "sample_len": len(rows)}
    for key in dict.fromkeys([*map(str, rows.columns), *(key for of_question in items for key in of_question)]):
        metric, _, filter_name = key.partition(",")
        if metric not in aggregations:
            continue
        values = [of_question[key] for of_question in items if key in of_question]
        if not values and key in rows:
            values = rows[key].dropna().tolist()
        if values:
            metrics[f"{metric},{filter_name or 'none'}"] = aggregations[metric](values)
            metrics[f"{metric}_stderr,{filter_name or 'none'}"] = "N/A"
    return metrics


def add_usage(row: dict[str, Any], used: Mapping[Any, tuple[float, int]]) -> None:
    """What a question's distinct inputs cost: the mean share zeroed, their number and their tokens."""
    row["share_zeroed"] = sum(share for share, _ in used.values()) / len(used)
    row["num_inputs"], row["num_tokens"] = len(used), sum(tokens for _, tokens in used.values())
