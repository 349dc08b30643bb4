"""Where headcount keeps what can be made again: converted GGUF files, lm-eval's task names, the built kernel.

What is kept is called ``STEM-DIGEST``, where DIGEST is the first 16 hex digits of its content's SHA-256: existing means
whole, and altering shows. That says nothing of who put it there, so it is used only where nobody but this user or root can
have done so.
"""

import functools
import os
import re
import stat
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import platformdirs

from headcount.files import checksum, file_checksum
from headcount.unfinished import sync, sync_folder, unfinished

T = TypeVar("T")


def cache_folder() -> Path:
    """``$HEADCOUNT_CACHE``, or headcount's folder among the user's caches. It may not exist, and need not be safe."""
    return Path(os.environ.get("HEADCOUNT_CACHE") or platformdirs.user_cache_dir("headcount"))


def kept(stem: str, extension: str, make: Callable[[Path], None], use: Callable[[Path], T]) -> T | None:
    """What ``use`` makes of a file or folder in the cache, which is made first if it is not there whole.

    Args:
        stem: what it is called, perhaps with folders before it. Whatever it is made from has to show in it.
        extension: of its name, with the dot; empty for a folder.
        make: makes it at the path that it is given.
        use: is given the path. If it raises, what was kept is not what it should be, and is made again.

    Returns:
        None if there is nowhere to keep it.

    Raises:
        OSError: it cannot be written.
        Exception: what ``make`` raises, or ``use`` of what was made just now.
    """
    entry = _Entry(Path(stem).name, extension)
    folder = _safe_folder(Path(stem).parent)
    if folder is None:
        return None
    for path in entry.found(folder):
        if path.name == entry.early:
            continue
        if entry.is_whole(path):
            with suppress(Exception):
                return use(path)
        _say(f"{str(path)!r} is not what was built here: cut off, altered or outdated. It is made again.")
    if not os.access(folder, os.W_OK):
        _say(f"The cache {str(folder)!r} cannot be written: what is built is built anew each time.")
        return None
    with unfinished(folder, "headcount") as work:
        made = work / f"made{extension}"
        make(made)
        _close_to_others(made)
        sync(made)
        final = folder / entry.name(made)
        for number, path in enumerate(entry.found(folder)):
            if path != final or not entry.is_whole(path):
                path.rename(work / f"old-{number}")
        if not final.exists():
            made.rename(final)
            sync_folder(folder)
        return use(final)


class _Entry:
    """How one thing is called in the cache."""

    def __init__(self, stem: str, extension: str) -> None:
        self._stem, self._extension = stem, extension
        #: As earlier versions called it, which kept no digest.
        self.early = f"{stem}{extension}"
        self._pattern = re.compile(rf"{re.escape(stem)}(-[0-9a-f]{{16}})?{re.escape(extension)}")

    def name(self, path: Path) -> str:
        """What is at ``path`` has to be called."""
        return f"{self._stem}-{_digest(path)}{self._extension}"

    def found(self, folder: Path) -> list[Path]:
        return [path for path in sorted(folder.iterdir()) if self._pattern.fullmatch(path.name)]

    def is_whole(self, path: Path) -> bool:
        try:
            return path.name == self.name(path)
        except OSError:
            return False


def changeable_by_others(folder: Path) -> str | None:
    """Why somebody else may have put there what is in the folder; None if nobody but this user and root can have."""
    if os.name != "posix":
        return None
    folder = folder.resolve()
    administrator = Path("/").stat().st_uid  # root, whom a container may know by another number
    for path in (folder, *folder.parents):
        found = path.stat()
        if not _is_own(found) and (path == folder or found.st_uid != administrator):
            return f"{str(path)!r} belongs to another user"
        # In a folder with the sticky bit, such as /tmp, others can add entries and not rename or remove them.
        if _others_can_write(found) and (path == folder or not found.st_mode & stat.S_ISVTX):
            return f"other users can write in {str(path)!r}"
    return None


def _safe_folder(inner: Path) -> Path | None:
    """The folder ``inner`` of the cache, or of a folder of this user's own in a cache that users share."""
    problem: str | None = None
    for folder in (cache_folder() / inner, cache_folder() / f"user-{_user()}" / inner):
        try:
            _make_folder(folder)
            problem = changeable_by_others(folder)
        except OSError as error:
            problem = f"it cannot be made ({error.strerror})"
        if problem is None:
            return folder
    _say(
        f"The cache {str(cache_folder())!r} is not used, and what is built is built anew each time: {problem}. Set "
        "HEADCOUNT_CACHE to a folder of your own; one to be shared needs the sticky bit (chmod +t)."
    )
    return None


def _make_folder(folder: Path) -> None:
    """The folder and its parents, in which nobody else can write, whatever the umask is."""
    for path in reversed([folder, *folder.parents]):
        if not path.exists():
            with suppress(FileExistsError):
                path.mkdir(mode=0o700)


def _close_to_others(path: Path) -> None:
    """Whatever the umask is, nobody else can write it."""
    for entry in (path, *path.rglob("*")):
        entry.chmod(entry.stat().st_mode & ~0o022)


def _digest(path: Path) -> str:
    """Of a file's content, or of the names and contents of a folder's files.

    Raises:
        OSError: something in it is a link or no file, or others can write it.
    """
    found = path.lstat()
    if not _is_own(found) or found.st_mode & 0o022:
        raise PermissionError(f"{str(path)!r} is another user's, or can be written by one")
    if stat.S_ISREG(found.st_mode):
        with path.open("rb") as file:
            return file_checksum(file)
    if not stat.S_ISDIR(found.st_mode):
        raise OSError(f"{str(path)!r} is neither a file nor a folder")
    lines = [f"{entry.name}\0{_digest(entry)}\n" for entry in sorted(path.iterdir())]
    return checksum("".join(lines).encode())


def _is_own(found: os.stat_result) -> bool:
    return found.st_uid in (0, _user())


def _user() -> int:
    return os.geteuid() if os.name == "posix" else 0


def _others_can_write(found: os.stat_result) -> bool:
    """Many systems give each user a group of their own, and let it write what the user makes: that is nobody else."""
    if not found.st_mode & stat.S_IWGRP:
        return bool(found.st_mode & stat.S_IWOTH)
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(found.st_uid), grp.getgrgid(found.st_gid)
    except KeyError:
        return True
    private = user.pw_gid == group.gr_gid and user.pw_name == group.gr_name and not {*group.gr_mem} - {user.pw_name}
    return not private or bool(found.st_mode & stat.S_IWOTH)


@functools.cache
def _say(what: str) -> None:
    """Once a process."""
    warnings.warn(what, stacklevel=1)
