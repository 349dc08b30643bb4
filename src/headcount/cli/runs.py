"""What the commands that make runs have in common: load the model, read the data, choose the folder."""

import os
import re
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headcount.cli.console import Steps, errors, output
from headcount.cli.options import Questions
from headcount.errors import InputError
from headcount.store import Run, is_run, open_run

if TYPE_CHECKING:
    from headcount.study.spec import ModelSpec, Tasks, Texts
    from headcount.study.subject import LoadedModel, Subject


def keep_offline(offline: bool) -> None:
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: it reads this once


def questions_of(tasks: Sequence[str], questions: Questions, steps: Steps) -> "Tasks":
    """The questions asked for. What is wrong with their names and number is said before a model is loaded."""
    keep_offline(questions.offline)
    done = steps.start("Looking up the tasks", 1)
    from headcount.study.evaluating import named_tasks

    named = named_tasks(
        tasks, num_fewshot=questions.num_fewshot, limit=questions.limit, include_path=questions.include_path
    )
    done(1, 1)
    return named


def load_model(spec: "ModelSpec", steps: Steps, *, offline: bool = False) -> "LoadedModel":
    """Load a model."""
    keep_offline(offline)
    done = steps.start("Loading the model", 1)
    from headcount.study.subject import load_model

    loaded = load_model(spec)
    done(1, 1)
    return loaded


def read_data(
    loaded: "LoadedModel", data: "Tasks | Texts", questions: Questions, steps: Steps, **options: Any
) -> "Subject":
    """Prepare what the model reads; options are those of ``study.subject.read_data``."""
    from headcount.study.subject import read_data

    done = steps.start("Preparing the questions" if hasattr(data, "tasks") else "Reading the texts", 1)
    subject = read_data(
        loaded, data, chat_template=questions.chat_template, offline=questions.offline,
        include_path=questions.include_path, **options,
    )  # fmt: skip
    done(1, 1)
    has_template = getattr(loaded.tokenizer, "chat_template", None)
    if subject.benchmark is not None and has_template and questions.chat_template is None:
        used, why = loaded.expects_chat()
        where, otherwise = ("in", "--no-chat-template") if used else ("not in", "--chat-template")
        note = f"Prompts are {where} the model's chat template: {why}. Otherwise with {otherwise}."
        errors.print(note, highlight=False, soft_wrap=True, markup=False)
    return subject


def open_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs in these folders: each is a run, a study (its runs, in its order), or holds runs.

    Raises:
        InputError: a folder that holds none.
    """
    from headcount.study.folder import is_study, open_study

    found: dict[Path, Run] = {}
    for path in paths:
        if is_run(path):
            runs = [open_run(path)]
        elif is_study(path):
            runs = list(open_study(path).runs().values())
        else:
            runs = [open_run(file.parent) for file in sorted(path.rglob("run.json"))]
        if not runs:
            raise InputError(
                f"{str(path)!r} holds no run (no run.json). Make one with `headcount measure … -o {path}`."
            )
        found |= {run.path.resolve(): run for run in runs if run.path.resolve() not in found}
    return list(found.values())


def say_whats_left(runs: Sequence[Run]) -> None:
    """Name the runs that do not hold all that was asked for."""
    from headcount.study.progress import whats_left

    for run in runs:
        if said := whats_left(run):
            output.say(f"{run.path}: {said}")


def command_line() -> str:
    return shlex.join(["headcount", *sys.argv[1:]])


def default_folder(model: str, data: Sequence[str]) -> Path:
    name = "-".join([Path(model).name, *(Path(item).stem for item in data[:3])])
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)[:60]}-{stamp}"
