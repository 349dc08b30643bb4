"""From a model's responses to rows of per-question outcomes, and from saved rows back to lm-eval's aggregated metrics."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from lm_eval.api.metrics import mean, median, nanmean, perplexity
from lm_eval.utils import handle_non_serializable, hash_string

from headcount.analysis.outcomes import NOT_METRICS
from headcount.evaluation.items import decode_items, encode_items
from headcount.metrics import BY_NAME, directions_of
from headcount.policies import BASELINE
from headcount.tasks import TaskSet


def answers(name: str, task: Any, requests: Iterable[Any], num_tokens: Callable[[str], int]) -> list[dict[str, Any]]:
    """One row a question of ``task``, from the responses that its ``requests`` (lm-eval Instances) hold.

    Filters and ``process_results`` are the task's own, as in lm-eval's ``evaluate``. A metric that is one number a
    question becomes a column (``exact_match,strict-match`` where a filter other than ``none`` gave it, ``score,none``
    where the bare name is taken); what else a task gathers for its aggregation goes into ``items``, with every number
    that a column of floats could not give back as it was: what is not finite, or is not averaged.

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
    aggregations, rows = task.aggregation(), []
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
                bare = filter_name == "none" and metric not in NOT_METRICS
                key = str(metric) if bare else f"{metric},{filter_name}"
                number, aggregation = _number(value), aggregations.get(metric, mean)
                if number is not None and aggregation is not perplexity:  # its numbers are log-likelihoods
                    row[key] = number
                if number is None or not math.isfinite(number) or aggregation is not mean:
                    items[key] = value
        row["items"] = encode_items(items) if items else None
        rows.append(row)
    return rows


def _number(value: Any) -> float | None:
    """A Python, numpy or torch number as float; None for anything else."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    return float(value) if isinstance(value, bool | int | float) else None


def directions(task: Any, rows: pd.DataFrame) -> dict[str, bool | None]:
    """Of each metric that ``answers`` gave these rows of one task, whether higher is better, as the task says.

    None where nobody says, and for numbers whose mean over questions is not what lm-eval makes of them.
    """
    said, aggregations = task.higher_is_better(), task.aggregation()
    columns = [str(name) for name in rows if name not in NOT_METRICS and bool(rows[str(name)].notna().any())]
    found: dict[str, bool | None] = {}
    for key in dict.fromkeys([*columns, *(key for text in rows["items"] for key in decode_items(text))]):
        metric = key.partition(",")[0]
        way = said.get(metric, BY_NAME.get(metric))
        judged = key not in columns or _is_average(aggregations.get(metric, mean))
        found[key] = way if isinstance(way, bool) and judged else None
    return found


def _is_average(aggregation: Callable[[list[float]], Any]) -> bool:
    """Whether the mean over questions says what an aggregation does; one of a task's own is tried."""
    if aggregation in (mean, nanmean, median):
        return True
    try:
        return math.isclose(aggregation([0.0, 0.25, 0.5, 1.0]), 0.4375)
    except Exception:  # a task's own code, made for other items
        return False


def _question(name: str, doc_id: int, task: Any, doc: Any, requests: list[Any]) -> dict[str, Any]:
    nats = [float(request.resps[0][0]) for request in requests if isinstance(request.resps[0], tuple)]
    if task.OUTPUT_TYPE == "multiple_choice" and "acc_mutual_info" in task.aggregation():
        nats = nats[: len(nats) // 2]  # the second half are the choices without their question
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
    fewer than two choices, or no possible one, or where the table has no baseline for it.
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
    if math.isnan(total := sum(base) + sum(other)) or total == math.inf or -math.inf in (max(base), max(other)):
        return math.nan
    p, q = (np.asarray(nats, dtype=float) - np.logaddexp.reduce(nats) for nats in (base, other))
    possible = p > -math.inf  # 0 · ln 0 is 0
    return max(0.0, float((np.exp(p) * (p - q))[possible].sum()))


def aggregate(outcomes: pd.DataFrame, task_set: TaskSet) -> tuple[pd.DataFrame, list[str]]:
    """lm-eval's own aggregation of saved outcomes: one row a policy, task or group, and metric.

    Returns:
        Columns policy, task, metric, value; groups weigh their tasks as lm-eval does. And what lm-eval could not
        aggregate, in sentences: that value is NaN.
    """
    rows, failed = [], []
    for policy, of_policy in outcomes.groupby("policy", sort=False):
        found: dict[str, dict[str, Any]] = {}
        for name, of_task in of_policy.groupby("task", sort=False):
            task = task_set.tasks[str(name)]
            found[str(name)] = _aggregate_task(str(name), task, of_task, f"under {policy}", failed)
        for name, group in task_set.groups.items():
            if all(leaf.task_name in found for leaf in group.get_all_tasks()):
                found[name] = group.aggregate(found)
        for name, metrics in found.items():
            rows += [
                (policy, name, key.removesuffix(",none"), number)
                for key, value in metrics.items()
                if "," in key
                and not key.partition(",")[0].endswith("_stderr")
                and (number := _number(value)) is not None
            ]
    return pd.DataFrame(rows, columns=["policy", "task", "metric", "value"]), failed


def _aggregate_task(name: str, task: Any, rows: pd.DataFrame, where: str, failed: list[str]) -> dict[str, Any]:
    rows = rows.sort_values("doc_id", kind="stable")
    aggregations = task.aggregation()
    items = [decode_items(text) for text in rows["items"]]
    known = [*directions_of(rows).get(name, {}), *(key for of_question in items for key in of_question)]
    known += [str(column) for column in rows if str(column).partition(",")[0] in aggregations]
    metrics: dict[str, Any] = {"name": name, "alias": name, "sample_len": 0}
    for key in dict.fromkeys(known):
        metric, _, filter_name = key.partition(",")
        column = rows[key].tolist() if key in rows and key not in NOT_METRICS else [math.nan] * len(rows)
        of_questions = zip(items, column, strict=True)
        values = [item.get(key, number) for item, number in of_questions if key in item or not math.isnan(number)]
        if not values:
            continue
        try:
            value = aggregations.get(metric, mean)(values)
        except Exception as error:  # a task's own code, or lm-eval's on items it does not expect
            value = math.nan
            failed.append(f"lm-eval cannot aggregate {metric} of {name} {where}: {type(error).__name__}: {error}.")
        metrics[f"{metric},{filter_name or 'none'}"] = value
        metrics[f"{metric}_stderr,{filter_name or 'none'}"] = "N/A"
        metrics["sample_len"] = max(metrics["sample_len"], len(values))
    return metrics


def add_usage(row: dict[str, Any], used: Mapping[Any, tuple[float, int]]) -> None:
    """What a question's distinct inputs cost: the mean share of heads off, their number and their tokens."""
    row["share_off"] = sum(share for share, _ in used.values()) / len(used)
    row["num_inputs"], row["num_tokens"] = len(used), sum(tokens for _, tokens in used.values())
