"""What the commands that make runs have in common: what they say of it, and which folder it is in."""

import os
import re
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from headcount.cli.console import errors, output
from headcount.errors import InputError
from headcount.store import Run, is_run, open_run
from headcount.units import KINDS

if TYPE_CHECKING:
    from headcount.study.subject import Subject


def keep_offline(offline: bool) -> None:
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: it reads this once


def say_template(subject: "Subject", chosen: bool | None) -> None:
    """Say whether prompts are in the model's chat template, where nothing was asked for and there is one."""
    loaded = subject.model
    if subject.benchmark is not None and chosen is None and getattr(loaded.tokenizer, "chat_template", None):
        used, why = loaded.expects_chat()
        where, otherwise = ("in", "--no-chat-template") if used else ("not in", "--chat-template")
        note = f"Prompts are {where} the model's chat template: {why}. Otherwise with {otherwise}."
        errors.print(note, highlight=False, soft_wrap=True, markup=False)


def open_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs in these folders: each is a run, a study (its runs, in its order), or holds runs.

    Raises:
        InputError: a folder that holds none, or runs of several kinds of units.
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
    first = next(iter(found.values()))
    if other := next((run for run in found.values() if run.manifest.unit != first.manifest.unit), None):
        raise InputError(
            f"{str(first.path)!r} is of {KINDS[first.manifest.unit].plural}, {str(other.path)!r} of "
            f"{KINDS[other.manifest.unit].plural}: their numbers do not stand in one table. Give runs of one kind."
        )
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
