"""One writer at a time: who works on a folder."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, Field

from headcount.errors import RunError
from headcount.files import cannot_write, kind, make_folder, read_file, write_atomically
from headcount.store.files import check_parts, leftovers

LOCK, HOLDER = ".lock", ".holder.json"
_Said = Annotated[str, Field(max_length=10_000)]


class Holder(BaseModel):
    """Who works on a folder, as its process wrote it."""

    pid: Annotated[int, Field(ge=0, lt=2**63)]
    host: _Said
    since: _Said
    command: _Said


@contextmanager
def claimed(folder: Path, what: str, is_own: Callable[[Path], bool], command: str) -> Iterator[None]:
    """Make a folder for a run or a study (``what``), unless it is one (``is_own``), and hold its lock.

    Raises:
        RunError: the folder holds other things, cannot be written, or another process works on it.
    """
    try:
        make_folder(folder)
        check_parts(folder)
        others = {entry.name for entry in folder.iterdir()} - {LOCK, HOLDER, *(file.name for file in leftovers(folder))}
        if others and not is_own(folder):
            raise RunError(f"{str(folder)!r} is not empty. Give the {what} a folder of its own with -o.")
    except OSError as error:
        raise cannot_write(folder, error) from error
    with _locked(folder, command):
        yield


@contextmanager
def _locked(folder: Path, command: str) -> Iterator[None]:
    """Hold the folder's lock. The system gives it back when the process ends, however it ends.

    Raises:
        RunError: another process holds it; the message says which, since when, and what it does.
    """
    if _shared(folder / LOCK):
        raise RunError(f"{str(folder / LOCK)!r} has other names (hard links), so that it locks nothing. Remove it.")
    lock = FileLock(folder / LOCK, is_singleton=False, thread_local=False)
    try:
        lock.acquire(timeout=0.3, poll_interval=0.05)  # somebody may only be looking
    except Timeout:
        raise RunError(
            f"{str(folder)!r} is being worked on by {_described(holder(folder))}. Wait until it has finished, or choose "
            "another folder with -o."
        ) from None
    except OSError as error:
        raise cannot_write(folder / LOCK, error) from error
    now = datetime.now(UTC).isoformat(timespec="seconds")
    facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": now, "command": command}
    try:
        with suppress(RunError):  # for people alone: the lock holds without it
            write_atomically(folder / HOLDER, json.dumps(facts).encode())
        yield
    finally:
        with suppress(OSError):
            (folder / HOLDER).unlink()
        lock.release()


def holder(folder: Path) -> dict[str, Any] | None:
    """Who works on the folder (pid, host, since, command; empty if that cannot be told), None if nobody does."""
    if kind(folder / LOCK) != "file" or _shared(folder / LOCK):
        return None
    lock = FileLock(folder / LOCK, is_singleton=False, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        with suppress(OSError, ValueError):
            return Holder.model_validate_json(read_file(folder / HOLDER)).model_dump()
        return {}
    except OSError:  # a folder that can only be read
        return None
    lock.release()
    return None


def _shared(lock: Path) -> bool:
    """Whether a lock file has other names: to lock it would empty and lock those, too."""
    return kind(lock) is not None and lock.lstat().st_nlink > 1


def _described(facts: dict[str, Any] | None) -> str:
    if not facts:
        return "another process"
    return f"process {facts.get('pid')} on {facts.get('host')} since {facts.get('since')} (`{facts.get('command')}`)"
