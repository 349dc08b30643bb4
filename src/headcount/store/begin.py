"""Make a run, or continue one: what an interruption left is cleared away first."""

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from headcount.errors import RunError
from headcount.store.files import damaged, leftovers, shards
from headcount.store.identity import differences, environment
from headcount.store.lock import claimed
from headcount.store.run import FORMAT, MANIFEST, METRICS, OUTCOMES, SCORES, SUMMARIES, Run, is_run, open_run
from headcount.store.summaries import add_up, summary_files

_HISTORY = "history.jsonl"


@contextmanager
def begin_run(
    path: str | os.PathLike[str],
    *,
    model: Mapping[str, Any],
    data: Mapping[str, Any],
    settings: Mapping[str, Any],
    command: str = "",
) -> Iterator[Run]:
    """Make a run, or continue the one in the folder if it is of the same model, data and settings, as its only writer.

    What an interruption left half done is cleared away, and damaged shards are named and removed, to be made anew.

    Args:
        path: folder of the run; one that holds other things is refused.
        model: facts about the model, its ``fingerprint`` among them.
        data: facts about the data.
        settings: what else decides the numbers, such as the seed.
        command: what is being done, for the run's history and for those who find it locked.

    Raises:
        RunError: the folder is another run's, holds other things, cannot be written, or another process works on it.
    """
    folder = Path(path)
    facts = {"model": dict(model), "data": dict(data), "settings": dict(settings)}
    with claimed(folder, "run", is_run, command):
        now = datetime.now(UTC).isoformat(timespec="seconds")
        versions = environment()
        if is_run(folder):
            run = open_run(folder)
            _check_same(run, facts)
            if changed := list(differences(versions, run.manifest.get("environment", {}))):
                warnings.warn(
                    f"{str(folder)!r} was begun with other versions ({'; '.join(changed)}): its numbers may differ from "
                    "those of one run by rounding.",
                    stacklevel=3,
                )
        else:
            run = Run(folder, {})
            run.update(format=FORMAT, created=now, command=command, environment=versions, **facts)
        _repair(run)
        with suppress(OSError), (folder / _HISTORY).open("a", encoding="utf-8") as history:  # for people alone
            history.write(json.dumps({"time": now, "command": command, "environment": versions}) + "\n")
        yield run


@contextmanager
def continue_run(path: str | os.PathLike[str], *, command: str = "", repair: bool = True) -> Iterator[Run]:
    """Continue the run in a folder as what it is, without a model or data at hand; otherwise as ``begin_run``.

    Without ``repair``, for who cannot make damaged shards anew, a run that has any is refused and left as it is.
    """
    run = open_run(path)
    if not repair and (broken := run.damaged()):
        raise damaged(broken[0], "it was cut off or altered since it was written")
    known = run.manifest
    with begin_run(
        path, model=known["model"], data=known.get("data", {}), settings=known.get("settings", {}), command=command
    ) as run:
        yield run


def _check_same(run: Run, facts: dict[str, dict[str, Any]]) -> None:
    same_model = facts["model"].get("fingerprint") == run.manifest.get("model", {}).get("fingerprint")
    parts = ("data", "settings") if same_model else ("model", "data", "settings")  # a path may be spelled another way
    differing = [
        f"{part} {difference}"
        for part in parts
        for difference in differences(json.loads(json.dumps(facts[part], default=str)), run.manifest.get(part, {}))
    ]
    if differing:
        raise RunError(
            f"{str(run.path)!r} is a run of something else: {'; '.join(differing)}. Choose another folder with -o."
        )


def _repair(run: Run) -> None:
    """Clear away what an interruption left: half-written files, those that others replace, and damaged ones."""
    for name in (MANIFEST, METRICS):
        for file in leftovers(run.path, name):
            file.unlink(missing_ok=True)
    for file in run.damaged():
        warnings.warn(f"{str(file)!r} was cut off or altered since it was written; it is made anew.", stacklevel=4)
        file.unlink(missing_ok=True)
    for folder in (SCORES, SUMMARIES, OUTCOMES):
        files = summary_files(run.path / folder) if folder == SUMMARIES else shards(run.path / folder)
        kept = {file.path for file in files}
        for file in (run.path / folder).glob("*"):
            if file not in kept:
                file.unlink(missing_ok=True)
    add_up(run.path / SUMMARIES)
