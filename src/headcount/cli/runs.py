"""What the commands that make runs have in common: load the model, read the data, choose the folder."""

import os
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headcount.cli.console import Steps, errors, output
from headcount.errors import InputError
from headcount.store import Run, is_run, open_run

if TYPE_CHECKING:
    from headcount.evaluation.benchmark import Benchmark
    from headcount.study.spec import Tasks, Texts
    from headcount.study.subject import LoadedModel, Subject, SubjectFacts


def keep_offline(offline: bool) -> None:
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: it reads this once


def questions_of(
    tasks: Sequence[str],
    steps: Steps,
    *,
    limit: float | None,
    num_fewshot: int | None,
    include_path: Path | None = None,
    offline: bool = False,
) -> "Tasks":
    """The questions asked for. What is wrong with their names and number is said before a model is loaded."""
    keep_offline(offline)
    done = steps.start("Looking up the tasks", 1)
    from headcount.study.spec import Tasks
    from headcount.tasks import check_tasks

    check_tasks(tasks, limit=limit, include_path=include_path)
    done(1, 1)
    return Tasks.model_construct(tasks=tuple(tasks), num_fewshot=num_fewshot, limit=limit)


def load_model(name: str, steps: Steps, *, offline: bool = False, **options: Any) -> "LoadedModel":
    """Load a model; options are those of ``headcount.load``."""
    keep_offline(offline)
    done = steps.start("Loading the model", 1)
    from headcount.models.loading import load
    from headcount.study.subject import LoadedModel

    model, tokenizer = load(name, **options)
    done(1, 1)
    return LoadedModel(name=name, model=model, tokenizer=tokenizer)


def read_data(loaded: "LoadedModel", data: "Tasks | Texts", steps: Steps, **options: Any) -> "Subject":
    """Prepare what the model reads; options are those of ``study.subject.read_data``."""
    from headcount.study.subject import read_data

    done = steps.start("Preparing the questions" if hasattr(data, "tasks") else "Reading the texts", 1)
    subject = read_data(loaded, data, **options)
    done(1, 1)
    has_template = getattr(loaded.tokenizer, "chat_template", None)
    if subject.benchmark is not None and has_template and options.get("chat_template") is None:
        used, why = loaded.expects_chat()
        where, otherwise = ("in", "--no-chat-template") if used else ("not in", "--chat-template")
        note = f"Prompts are {where} the model's chat template: {why}. Otherwise with {otherwise}."
        errors.print(note, highlight=False, soft_wrap=True, markup=False)
    return subject


def prepare_benchmark(loaded: "LoadedModel", questions: "Tasks", steps: Steps, **options: Any) -> "Benchmark":
    """The questions, for a model; options are those of ``study.subject.read_data``."""
    benchmark = read_data(loaded, questions, steps, **options).benchmark
    assert benchmark is not None
    return benchmark


def run_settings(folder: Path, facts: "SubjectFacts", *, seed: int, **chosen: Any) -> dict[str, Any]:
    """The manifest's ``settings``: those of the run that is there, if there is one, but for what is chosen here."""
    from headcount.store import manifest
    from headcount.store.files import Damaged

    known = manifest.Settings(shard=facts.shard(manifest.SHARD))
    with suppress(Damaged):  # made anew with these
        known = open_run(folder).settings if is_run(folder) else known
    kept = {"shard": known.shard, "scores_dtype": known.scores_dtype, "summaries": known.summaries}
    return {"seed": seed} | kept | chosen


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
