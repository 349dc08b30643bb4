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
from headcount.files import append_line, checksum, read_file
from headcount.store.files import WRITTEN, Damaged, Shard, as_shard, damaged, every_shard, is_whole, leftovers
from headcount.store.folder import MANIFEST, METRICS, OUTCOMES, SCORES, SUMMARIES, is_run
from headcount.store.identity import differences, environment
from headcount.store.lock import HOLDER, claimed
from headcount.store.manifest import Manifest
from headcount.store.run import Run, open_run, subject_of
from headcount.store.summaries import add_up
from headcount.units import KINDS

_HISTORY = "history.jsonl"


@contextmanager
def begin_run(
    path: str | os.PathLike[str],
    *,
    model: Mapping[str, Any],
    data: Mapping[str, Any],
    settings: Mapping[str, Any],
    batch_tokens: int | None = None,
    command: str = "",
) -> Iterator[Run]:
    """Make a run, or continue the one in the folder if it is of the same model, data and settings, as its only writer.

    What an interruption left half done is cleared away, and damaged shards are named and removed, to be made anew.

    Args:
        path: folder of the run; one that holds other things is refused.
        model: facts about the model, its ``fingerprint`` among them.
        data: facts about the data.
        settings: what else decides the numbers, such as the seed.
        batch_tokens: tokens in a batch, on which the numbers depend by rounding.
        command: what is being done, for the run's history and for those who find it locked.

    Raises:
        RunError: the folder is another run's, holds other things, cannot be written, or another process works on it.
    """
    folder = Path(path)
    facts = Manifest.of({"model": model, "data": data, "settings": settings})
    with claimed(folder, "run", is_run, command):
        now = datetime.now(UTC).isoformat(timespec="seconds")
        versions = environment()
        if is_run(folder):
            run = _opened(folder, facts)
            _check_same(run, facts)
            if run.manifest.created and (changed := list(differences(versions, run.manifest.environment))):
                warnings.warn(
                    f"{str(folder)!r} was begun with other versions ({'; '.join(changed)}): its numbers may differ from "
                    "those of one run by rounding.",
                    stacklevel=3,
                )
            if batch_tokens and (before := run.manifest.batch_tokens) not in (None, batch_tokens):
                warnings.warn(
                    f"{str(folder)!r} was begun with batches of {before} tokens, not {batch_tokens}: its numbers may differ from "
                    f"those of one run by rounding. --batch-tokens {before} (batch_tokens) continues it as it began.",
                    stacklevel=3,
                )
        else:
            run = Run(folder, facts)
        if not run.manifest.created:
            read_in = {} if batch_tokens is None else {"batch_tokens": batch_tokens}
            run.update(created=now, command=command, environment=versions, **read_in)
        _repair(run)
        with suppress(OSError, RunError):  # for people alone
            append_line(folder / _HISTORY, json.dumps({"time": now, "command": command, "environment": versions}))
        yield run
        if (folder / WRITTEN).exists():
            run.update()


def _opened(folder: Path, facts: Manifest) -> Run:
    """The run in the folder; where its manifest is damaged or gone, one made anew from its shards.

    Raises:
        RunError: the shards do not say that they are of this run.
    """
    try:
        run = open_run(folder)
    except Damaged as error:
        run = Run(folder, facts)
        for name in run.present():
            if is_whole(shard := Shard.of(folder / name)) and subject_of(shard) != facts.subject:
                raise RunError(
                    f"{error} But {name} does not say that it is of the same model, data and settings as this command. Give "
                    "that command, or choose another folder with -o."
                ) from None
        warnings.warn(f"{str(folder / MANIFEST)!r} was damaged; it is made anew.", stacklevel=4)
        (folder / WRITTEN).unlink(missing_ok=True)
    try:
        run.noted()
    except Damaged:
        warnings.warn(f"{str(folder / WRITTEN)!r} was damaged; it is made anew.", stacklevel=4)
        (folder / WRITTEN).unlink()
    return run


@contextmanager
def continue_run(path: str | os.PathLike[str], *, command: str = "", repair: bool = True) -> Iterator[Run]:
    """Continue the run in a folder as what it is, without a model or data at hand; otherwise as ``begin_run``.

    Without ``repair``, for who cannot make damaged shards anew, a run that has any is refused and left as it is.
    """
    run = open_run(path)
    if not repair and (broken := run.damaged()):
        raise damaged(broken[0], "it was cut off or altered since it was written")
    if not repair and (gone := run.missing()):
        raise damaged(gone[0], "it is gone")
    known = run.manifest
    with begin_run(
        path, model=known.model.facts(), data=known.data.facts(), settings=known.settings.facts(), command=command
    ) as run:
        yield run


def _check_same(run: Run, facts: Manifest) -> None:
    there, here = run.manifest, facts
    if there.unit != here.unit:
        raise RunError(
            f"{str(run.path)!r} is a run of {KINDS[there.unit].plural}, not of {KINDS[here.unit].plural}: a run is of one kind. "
            f"Continue it with --unit {there.unit} (unit={there.unit!r}), or choose another folder with -o."
        )
    parts = {"data": (here.data, there.data), "settings": (here.settings, there.settings)}
    if here.model.fingerprint != there.model.fingerprint:  # of the same one a path may be spelled another way
        parts = {"model": (here.model, there.model), **parts}
    differing = [
        f"{part} {difference}"
        for part, (wanted, found) in parts.items()
        for difference in differences(wanted.facts(), found.facts())
    ]
    if differing:
        raise RunError(
            f"{str(run.path)!r} is a run of something else: {'; '.join(differing)}. Choose another folder with -o."
        )


def _repair(run: Run) -> None:
    """Clear away what an interruption left: half-written files, those that others replace, and damaged ones."""
    for gone in run.missing():
        if gone.name == METRICS:  # added up anew from the answers
            continue
        warnings.warn(f"{str(gone)!r} is gone; it is made anew.", stacklevel=4)
        for other in every_shard(gone.parent):
            if (lost := as_shard(gone)) and other.stem == lost.stem:  # under its name, and not what was written
                other.path.unlink()
    for file in run.damaged():
        warnings.warn(f"{str(file)!r} was cut off or altered since it was written; it is made anew.", stacklevel=4)
        file.unlink()
    kept = set(run.present())
    for folder in (SCORES, SUMMARIES, OUTCOMES):
        for file in [*leftovers(run.path / folder), *(shard.path for shard in every_shard(run.path / folder))]:
            if f"{folder}/{file.name}" not in kept:
                file.unlink()
    for name in (MANIFEST, METRICS, HOLDER, _HISTORY, WRITTEN):
        for file in leftovers(run.path, name):
            file.unlink()
    metrics = None
    if (run.path / METRICS).exists():
        older = run.manifest.format == 2
        metrics = checksum(read_file(run.path / METRICS)) if older else run.manifest.metrics
        if metrics is None:  # whoever wrote it died before it counted
            (run.path / METRICS).unlink()
    found = {"files": sorted(kept)} | ({} if metrics == run.manifest.metrics else {"metrics": metrics})
    if run.manifest.changed(**found) != run.manifest or (run.path / WRITTEN).exists():
        run.update(**found)
    add_up(run.path / SUMMARIES)
