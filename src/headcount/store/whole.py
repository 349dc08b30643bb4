"""Results of several files that appear whole, or not at all: a new folder, or files that belong together.

They are made in a hidden folder beside their place, synced, and renamed. A process that is killed leaves that folder alone,
which the next one that makes the same names and clears.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from headcount.errors import InputError
from headcount.files import cannot_write, make_folder
from headcount.unfinished import clear_leftovers, sync, sync_folder, unfinished


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder to fill, which is ``folder`` once the block has ended.

    Of two that make the same at once, the first to end has it, and the other is refused.

    Raises:
        InputError: something is there already, before or after the block.
        RunError: it cannot be written.
    """
    refuse_taken(folder)
    folder = Path(os.path.abspath(folder))
    with _sentence(folder), _parents(folder), unfinished(folder.parent, folder.name) as work:
        new = work / folder.name
        new.mkdir()
        yield new
        sync(new)
        refuse_taken(folder)
        new.rename(folder)
        sync_folder(folder.parent)


@contextmanager
def files_together(folder: Path) -> Iterator[Path]:
    """A hidden folder to write files into, all of which are in ``folder`` once the block has ended, and none if it fails.

    Files of the same names are replaced; whatever else is there stays. Of two that write at once, one is whole after the
    other.

    Raises:
        RunError: it cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    there = folder.is_dir()
    place = folder if there else folder.parent  # so that a mount, or a parent that is read-only, does not matter
    with _sentence(folder), _parents(folder):
        if there:
            clear_leftovers(folder.parent, folder.name)
        elif os.path.lexists(folder):
            raise NotADirectoryError(None, "it is no folder")
        with unfinished(place, folder.name) as work:
            new = work / folder.name
            new.mkdir()
            yield new
            sync(new)
            if not there:
                try:
                    new.rename(folder)
                except OSError:
                    if not folder.is_dir():  # else another process made it meanwhile
                        raise
            if new.exists():
                _move_into(folder, new)
            sync_folder(place)


def check_writable(path: Path) -> None:
    """Raise RunError where a result at ``path`` could not be written in the end, before minutes of work.

    What killed processes left when they made it is cleared.
    """
    path = Path(os.path.abspath(path))
    with _sentence(path):
        place = path if path.is_dir() else next(parent for parent in path.parents if os.path.lexists(parent))
        with unfinished(place, path.name):
            pass


def refuse_taken(folder: Path) -> None:
    """Raise InputError if there is something at ``folder``; an empty folder is nothing."""
    found = ""
    if folder.is_symlink():
        found = "is a link"
    elif os.path.ismount(folder):
        found = "is a file system of its own"
    elif os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        found = "exists already"
    if found:
        raise InputError(f"{str(folder)!r} {found}. Choose another folder with -o, or remove it first.")


def _move_into(folder: Path, new: Path) -> None:
    files = sorted(new.iterdir())
    with _locked(folder):
        for file in files:
            with suppress(FileNotFoundError):
                if not stat.S_ISREG((folder / file.name).lstat().st_mode):
                    raise FileExistsError(None, f"{file.name!r} there is no file")
        for file in files:
            file.replace(folder / file.name)
        sync_folder(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait for others that move files into the folder, where the file system can lock a folder."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """Make the folders above; they go again if the block fails."""
    missing = [path for path in folder.parents if not path.exists()]
    try:
        make_folder(folder.parent)
        yield
    except BaseException:
        for path in missing:
            with suppress(OSError):
                path.rmdir()
        raise


@contextmanager
def _sentence(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise cannot_write(folder, error) from error
