"""One writer at a time: who works on a folder."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from headcount.errors import RunError
from headcount.store.files import cannot_write, leftovers, make_folder

LOCK, HOLDER = ".lock", ".holder.json"


@contextmanager
def claimed(folder: Path, what: str, is_own: Callable[[Path], bool], command: str) -> Iterator[None]:
    """Make a folder for a run or a study (``what``), unless it is one (``is_own``), and hold its lock.

    Raises:
        RunError: the folder holds other things, cannot be written, or another process works on it.
    """
    try:
        make_folder(folder)
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
        with suppress(OSError):  # for people alone: the lock holds without it
            (folder / HOLDER).write_text(json.dumps(facts), encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
            (folder / HOLDER).unlink()
        lock.release()


def holder(folder: Path) -> dict[str, Any] | None:
    """Who works on the folder (pid, host, since, command; empty if that cannot be told), None if nobody does."""
    if not (folder / LOCK).exists():
        return None
    lock = FileLock(folder / LOCK, is_singleton=False, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        with suppress(OSError, ValueError):
            known = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
            if isinstance(known, dict):
                return known
        return {}
    except OSError:  # a folder that can only be read
        return None
    lock.release()
    return None


def _described(facts: dict[str, Any] | None) -> str:
    if not facts:
        return "another process"
    return f"process {facts.get('pid')} on {facts.get('host')} since {facts.get('since')} (`{facts.get('command')}`)"
