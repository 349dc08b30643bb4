"""The names that lm-eval knows, and which of its tasks a text model can do."""

import functools
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from numbers import Real
from pathlib import Path
from typing import Any

from headcount.cache import kept
from headcount.errors import InputError, TaskError, nearest
from headcount.files import checksum
from headcount.strict_yaml import read_yaml
from headcount.tasks.quiet import quiet

_UNREADABLE = "cannot be read"
_MOST_INCLUDES = 100  # of one task file, those that they include among them; lm-eval's own have seldom more than two


def task_names() -> list[str]:
    """Names of all of lm-eval's tasks, groups and tags."""
    return sorted(_index())


def task_manager(include_path: str | Path | None) -> Any:
    from lm_eval.tasks import TaskManager

    index = _index()
    if include_path is None:
        own = {}
    elif not Path(include_path).is_dir():
        raise TaskError(f"include_path {str(include_path)!r} is no folder; expected one that holds lm-eval task files.")
    else:
        own = _own_index(Path(include_path))
        if not own:
            raise TaskError(
                f"include_path {str(include_path)!r} holds no task file that lm-eval can read; expected *.yaml files "
                "with a `task:` or `group:` name. `lm_eval validate` says what is wrong with one."
            )
    manager = TaskManager(include_defaults=False)
    manager.task_index.update(index | own)
    return manager


def _own_index(folder: Path) -> dict[str, Any]:
    """What the task files of a folder are called, as lm-eval's index has it. They are read as data: no code in them runs."""
    from lm_eval.tasks._index import Entry, Kind, TaskIndex

    index: dict[str, Any] = {}
    for file in sorted(folder.glob("**/*.yaml"), key=lambda path: path.as_posix()):
        try:
            TaskIndex.process_cfg(_read_task_file(file), file, index)
        except InputError as error:  # said when its task is asked for
            index[file.stem] = Entry(name=file.stem, kind=Kind.UNKNOWN, yaml_path=file, cfg={_UNREADABLE: str(error)})
        except (TaskError, ValueError, LookupError, TypeError):  # what others include, and what is no task file
            continue
    return {name: entry for name, entry in index.items() if isinstance(name, str)}


def _read_task_file(file: Path, includes: Iterator[int] | None = None) -> dict[str, Any]:
    """A task file with those that it includes, names of functions as text."""
    file = file.resolve()
    includes = iter(range(_MOST_INCLUDES)) if includes is None else includes
    if not file.is_file() or next(includes, None) is None:
        raise TaskError(f"{str(file)!r} is no task file, or includes itself, or more than {_MOST_INCLUDES} in all.")
    config = read_yaml(
        file, text_tags=["!function"], repeated_keys=True
    )  # as lm-eval reads it, some of its own files too
    if not isinstance(config, dict):
        raise TaskError(f"{str(file)!r} holds no fields; a task file has at least `task:` or `group:`.")
    included: dict[str, Any] = {}
    names = config.pop("include", [])
    for name in names if isinstance(names, list) else [names]:
        included |= _read_task_file(file.parent / str(name), includes)
    return {key: value for key, value in included.items() if key != "task_list"} | config


#: Of a name: its kind, its file, its tags, and what it needs that a text model lacks.
_Kept = tuple[str, str | None, list[str], list[str]]


@functools.cache
def _index() -> dict[str, Any]:
    """lm-eval's names, kept on disk: lm-eval reads 14,000 files to learn them, which takes ten seconds."""
    with quiet():
        import lm_eval
        import lm_eval.tasks
        from lm_eval.tasks._index import Entry, Kind

    root = Path(lm_eval.tasks.__file__).parent
    changed = [path.stat().st_mtime_ns for path in root.rglob("*.yaml")]
    stamp = [2, lm_eval.__version__, str(root), len(changed), max(changed)]  # 2: version of this file format
    found: list[dict[str, _Kept]] = []  # what was read for want of a saved index, or to save it

    def save(file: Path) -> None:
        found.append(_read_index())
        file.write_text(json.dumps(found[0]), encoding="utf-8")

    def parse(entries: Any) -> dict[str, Any]:
        return {
            name: Entry(
                name=name,
                kind=Kind[kind],
                yaml_path=path and Path(path),
                cfg=dict.fromkeys(needs, True),
                tags=set(tags),
            )
            for name, (kind, path, tags, needs) in entries.items()
        }

    index = None
    with suppress(OSError):  # a cache that cannot be written costs time only
        stem = f"lm_eval_tasks-{checksum(json.dumps(stamp).encode())}"
        index = kept(stem, ".json", save, lambda file: parse(json.loads(file.read_text(encoding="utf-8"))))
    return parse(found[0] if found else _read_index()) if index is None else index


def _read_index() -> dict[str, _Kept]:
    with quiet():
        from lm_eval.tasks import TaskManager

        index = TaskManager().task_index
    return {
        name: (
            entry.kind.name,
            entry.yaml_path and str(entry.yaml_path),
            sorted(entry.tags),
            [key for key in ("unsafe_code", "doc_to_image", "doc_to_audio") if (entry.cfg or {}).get(key)],
        )
        for name, entry in index.items()
    }


def check_tasks(names: Sequence[str], *, limit: float | None = None, include_path: str | Path | None = None) -> None:
    """What can be known of benchmarks without their data: whether they exist and can be done, and a sensible limit.

    Raises:
        TaskError: a task that does not exist, or asks for more than a text model.
        InputError: a number of questions that makes no sense.
    """
    check_limit(limit)
    _index()  # what there is to say of the cache is said, lm-eval's own words are not
    with quiet():
        index = task_manager(include_path).task_index
    for name in names:
        check_name(name, index)


def check_limit(limit: float | None) -> None:
    if limit is not None and not isinstance(limit, Real):
        raise InputError(f"limit is a number of questions, or a share of them below 1, not {limit!r:.60}.")
    if limit is not None and not (0 < limit < 1 or (limit > 0 and float(limit).is_integer())):
        raise InputError(
            f"limit is a whole number of questions, or a share of them below 1, greater than 0; got {limit:g}."
        )


def check_name(name: str, index: dict[str, Any]) -> None:
    if name not in index:
        hint = nearest(name, index)
        if hint.startswith("Known"):
            hint = "`lm_eval ls tasks` lists all that exist; your own need include_path."
        raise TaskError(f"{name!r} is none of the {len(index):,} benchmarks that lm-eval knows. {hint}")
    config = index[name].cfg or {}
    if _UNREADABLE in config:
        raise TaskError(config[_UNREADABLE])
    _refuse(name, set(config))


def check_supported(task: Any) -> None:
    needs = {"unsafe_code"} if getattr(task, "UNSAFE_CODE", False) else set()
    _refuse(task_label(task), needs | ({"doc_to_image"} if getattr(task, "MULTIMODAL", False) else set()))


def _refuse(name: str, needs: set[str]) -> None:
    if "unsafe_code" in needs:
        raise TaskError(
            f"Task {name!r} runs code written by the model, which headcount does not do. Choose another task."
        )
    if {"doc_to_image", "doc_to_audio"} & needs:
        raise TaskError(f"Task {name!r} shows images or plays sound; expected text alone. Choose another task.")


def task_label(task: Any) -> str:
    return task.config.task or type(task).__name__  # a task written as a class learns its name last


def reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300].rstrip('.')}"
