"""Hidden folders in which things are made: nothing has its final name before it is whole, and what was left over is found.

Such a folder is called ``.NAME.making-RANDOM``. Its maker holds a lock on a file in it, which the system gives back however
the process ends. So a folder whose lock can be had belongs to nobody any more, on whichever machine its maker ran.
"""

import errno
import os
import re
import shutil
import stat
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK = ".maker"


@contextmanager
def unfinished(folder: Path, name: str) -> Iterator[Path]:
    """A new hidden folder in ``folder``, of this user alone, to make ``name`` in; it is gone when the block ends.

    What killed processes left that made the same is cleared, with a warning that names it.

    Raises:
        OSError: ``folder`` cannot be written.
    """
    clear_leftovers(folder, name)
    work, lock = _begin(folder, name)
    try:
        yield work
    except Exception as error:
        if said := re.search(r"\(os error (\d+)\)", str(error)):  # how libraries in Rust say what the system said
            raise OSError(int(said[1]), os.strerror(int(said[1]))) from error
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(lock)


def clear_leftovers(folder: Path, name: str) -> None:
    """Remove what killed processes of this user left in ``folder`` when they made ``name``; warn of each."""
    for work in sorted(folder.iterdir()) if folder.is_dir() else ():
        if work.name.startswith(f".{name}.making-") and _is_left_over(work):
            warnings.warn(f"Cleared {str(work)!r}, left over by a process that was killed.", stacklevel=1)


def sync(path: Path) -> None:
    """Have a file, or a folder with all that is in it, on the disk, so that a name given to it afterwards never lies."""
    if path.is_dir():
        for entry in path.iterdir():
            sync(entry)
        sync_folder(path)
        return
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Have on the disk which names are in the folder."""
    if os.name != "posix":  # only there can a folder be opened, and has to be
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _begin(folder: Path, name: str) -> tuple[Path, int]:
    while True:  # until no other process takes the new folder for a leftover before it is locked
        work = Path(tempfile.mkdtemp(prefix=f".{name}.making-", dir=folder))
        try:
            lock = os.open(work / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except FileNotFoundError:
            continue
        if _try_lock(lock) is not False and (work / _LOCK).exists():
            return work, lock
        os.close(lock)


def _is_left_over(work: Path) -> bool:
    """Remove the folder if its maker is gone; whether it was."""
    try:
        found = work.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            return False
        lock = os.open(work / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        try:
            work.rmdir()  # killed before it was locked, and so empty; or none of ours, and left alone
        except OSError:
            return False
        return True
    except OSError:
        return False
    try:
        if _try_lock(lock) is not True:
            return False
        shutil.rmtree(work, ignore_errors=True)
        return not work.exists()
    finally:
        os.close(lock)


def _try_lock(descriptor: int) -> bool | None:
    """Whether the lock could be had; None where the file system (or the system) has none."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return None
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True
