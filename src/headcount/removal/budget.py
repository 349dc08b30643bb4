"""The largest removal whose fall of accuracy is shown to stay within a budget, on questions not used to choose."""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import pandas as pd

from headcount.analysis import accuracy_table
from headcount.analysis.outcomes import main_metric
from headcount.errors import InputError
from headcount.metrics import Metric
from headcount.models.batching import Progress, no_progress
from headcount.models.state import reads
from headcount.policies import BASELINE
from headcount.removal.fitting import NO_TEXTS, Fitting
from headcount.removal.replace import How, replace_heads
from headcount.removal.selection import Selection
from headcount.units import KINDS, UnitSet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from headcount.evaluation.benchmark import Benchmark


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A fall of accuracy, as a fraction of 1, over all questions of some tasks, each question once.

    Of a metric that is better when lower it is a rise.
    """

    margin: float
    tasks: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``1 point of arc_easy,piqa``; a point is a hundredth.

        Raises:
            InputError: another form.

        >>> Budget.parse("0.5 points of arc_easy, piqa")
        Budget(margin=0.005, tasks=('arc_easy', 'piqa'))
        """
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s+points?\s+of\s+(\S.*?)\s*", text)
        tasks = tuple(task.strip() for task in found[2].split(",")) if found else ()
        if found is None or not all(tasks) or float(found[1]) == 0:
            raise InputError(f'Budget {text!r} is not understood. Write it like "1 point of arc_easy,piqa".')
        return cls(margin=float(found[1]) / 100, tasks=tasks)


@reads
def select_within_budget(
    model: "PreTrainedModel",
    candidates: Selection,
    benchmark: "Benchmark",
    fitting: Fitting = NO_TEXTS,
    *,
    margin: float,
    used: Collection[tuple[str, int]] = (),
    num_questions: int | None = None,
    step: float = 0.05,
    metric: str | None = None,
    confidence: float = 0.95,
    how: How = "refit",
    progress: Callable[[str], Progress] = lambda _: no_progress,
) -> tuple[Selection, pd.DataFrame]:
    """The longest prefix of ``candidates`` whose fall of accuracy is shown to be within ``margin``, and all trials.

    Prefixes are tried from the shortest up, ``step`` of the model's heads longer each time, and the first one whose fall is
    not shown to be within the margin ends the search. In this fixed order no trial costs another its confidence: that a
    prefix whose fall is larger is accepted happens with probability 1 − ``confidence`` at most.

    Args:
        model: is left as it was.
        candidates: heads in the order in which they go.
        benchmark: its questions, except those ``used``, are asked of the untouched model and after each removal.
        fitting: the texts that what replaces heads is found on.
        margin: the fall that is tolerated, a fraction of 1.
        used: (task, doc_id) of questions that the heads were chosen on.
        num_questions: held-out questions a task, the first ones; None for all.
        step: share of the model's heads between trials.
        metric: lm-eval's name of it; None for ``acc``, or the first of the tasks that can be judged.
        confidence: of the statement, one-sided.
        how: what replaces removed heads.
        progress: called with the name of each step, gives what to call with (done, total).

    Returns:
        The selection, and one row a trial: ``share``, ``num_heads``, ``num_questions``, ``accuracy``, ``change``,
        ``change_bound`` (one-sided), ``confidence_within``, ``within_margin``, ``metric``, ``higher_is_better``, ``is_share``.

    Raises:
        InputError: no questions are left, an unusable step, or not even the shortest removal is shown to be within.
    """
    if not 0 < step <= 1:
        raise InputError(f"Shares are tried in steps between 0 and 1, not {step}; write 5% as 0.05.")
    questions = _held_out(benchmark.questions, set(used), num_questions)
    if not questions:
        raise InputError(
            "Every question of the budget's tasks was used to choose heads. Choose on other texts, or on fewer questions "
            "(--limit)."
        )
    baseline = benchmark.ask([None], questions, progress=progress("Held-out questions, nothing removed")).outcomes
    metric = metric or main_metric(baseline) or "acc"
    if metric not in baseline:
        raise InputError(f"These tasks have no metric {metric!r}. Give a task of multiple choice.")
    if (judged := Metric.of(baseline, metric)).higher_is_better is None:
        raise InputError(judged.doubt)
    if not judged.is_share:
        raise InputError(f"A budget is in points of a metric between 0 and 1; {metric!r} is not. Give other tasks.")
    total = candidates.num_parts
    trials: list[dict[str, object]] = []
    within: Sequence[tuple[int, int]] = ()
    for heads in _prefixes(candidates, step * total):
        share = len(heads) / total
        what = f"{100 * share:.0f}% removed"
        told = progress(f"{what}: replacing")
        replacement = replace_heads(model, UnitSet(heads), how, fitting, progress=told)
        with replacement.applied(model):
            outcomes = benchmark.ask([None], questions, progress=progress(f"{what}: held-out questions")).outcomes
        both = pd.concat([baseline, outcomes.assign(policy="removed", share_off=share)], ignore_index=True)
        table = accuracy_table(both, metric=metric, margin=margin, confidence=confidence)
        row = table[table["policy"] != BASELINE].iloc[0]
        names = ("num_questions", "accuracy", "change", "change_bound", "confidence_within", "within_margin")
        names += ("higher_is_better", "is_share")
        trials.append(
            {"share": share, "num_heads": len(heads), "metric": metric, **{name: row[name] for name in names}}
        )
        if row["within_margin"] != "shown":
            break
        within = heads
    tried = pd.DataFrame(trials)
    if not within:
        first = trials[0]
        raise InputError(
            f"Removing {first['num_heads']} heads is not shown to cost at most {100 * margin:g} points: the "
            f"{'rise' if judged.sign < 0 else 'fall'} measured on {first['num_questions']} held-out questions is "
            f"{0 - 100 * judged.sign * float(str(first['change'])):.1f} points, and that it is "
            f"within the budget has a confidence of {100 * float(str(first['confidence_within'])):.0f}%, not "
            f"{100 * confidence:g}%. Ask more questions, allow more points, or try a smaller --step."
        )
    last = tried[tried["within_margin"] == "shown"].iloc[-1]
    chosen = candidates.chosen | {
        "share": float(last["share"]),
        "budget": f"{100 * margin:g} points of {metric}",
        "budget's tasks": sorted({task for task, _ in benchmark.questions}),
        "held-out questions": int(last["num_questions"]),
        "change on them": float(last["change"]),
        f"change is {'below' if judged.sign < 0 else 'above'}": float(last["change_bound"]),
        "with confidence": confidence,
        "replaced by": how,
    }
    return candidates.model_copy(update={"heads": tuple(within), "chosen": chosen}), tried


def _held_out(
    questions: Sequence[tuple[str, int]], used: Collection[tuple[str, int]], num_questions: int | None
) -> list[int]:
    """Indices of the first ``num_questions`` questions of each task that are not among ``used``."""
    taken: dict[str, list[int]] = defaultdict(list)
    for index, question in enumerate(questions):
        if question not in used and (num_questions is None or len(taken[question[0]]) < num_questions):
            taken[question[0]].append(index)
    return [index for of_task in taken.values() for index in of_task]


def _prefixes(candidates: Selection, step: float) -> list[Sequence[tuple[int, int]]]:
    """Longer and longer starts of the candidates, by about ``step`` heads, that cut no unit in two."""
    unit_of = {layer.index: KINDS[candidates.kind].of_parts(layer) for layer in candidates.model.layers}

    def unit(head: tuple[int, int]) -> tuple[int, int]:
        return head[0], unit_of[head[0]][head[1]]

    heads = candidates.heads
    ends = [place for place in range(1, len(heads)) if unit(heads[place]) != unit(heads[place - 1])] + [len(heads)]
    found: list[Sequence[tuple[int, int]]] = []
    for place, end in enumerate(ends):
        following = ends[place + 1] if place + 1 < len(ends) else float("inf")
        if following > (len(found) + 1) * step:
            found.append(heads[:end])
    return found
