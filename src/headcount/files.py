"""Plain files: opened only where they are files, written whole or not at all."""

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress
from io import BufferedReader
from pathlib import Path

from headcount.errors import RunError
from headcount.unfinished import sync_folder

# Where the system has no such flags, nothing hangs either.
_PLAIN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_KINDS = {
    stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "symbolic link", stat.S_IFIFO: "pipe (FIFO)",
    stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device",
}  # fmt: skip


def kind(path: Path) -> str | None:
    """What is there, without following a link: ``file``, ``folder``, ``symbolic link``, …; None for nothing."""
    try:
        return _KINDS.get(stat.S_IFMT(path.lstat().st_mode), "device")
    except (FileNotFoundError, NotADirectoryError):
        return None


def open_file(file: Path) -> BufferedReader:
    """A file's content, to read. Raises OSError if it cannot be read, or is a link, a pipe, a folder or a device."""
    descriptor = os.open(file, os.O_RDONLY | _PLAIN)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"it is a {kind(file)}, not a file")
    return os.fdopen(descriptor, "rb")


def read_file(file: Path) -> bytes:
    """As ``open_file``, all of it."""
    with open_file(file) as stream:
        return stream.read()


def write_atomically(file: Path, content: bytes | Iterable[bytes | memoryview]) -> None:
    """Write so that the file is either absent, or its old self, or complete, whatever happens meanwhile.

    Temporary file, fsync, rename, fsync of the folder.

    Raises:
        RunError: it cannot be written, or something else than a file is there.
    """
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(8)}.part")
    try:
        make_folder(file.parent)
        if (found := kind(file)) not in (None, "file"):
            raise OSError(f"it is a {found}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _PLAIN, 0o666)
        with os.fdopen(descriptor, "wb") as stream:
            stream.writelines([content] if isinstance(content, bytes) else content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
        sync_folder(file.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise cannot_write(file, error) from error


def append_line(file: Path, line: str) -> None:
    """Add a line, durably, to this file alone: one that has other names (hard links) is replaced by a copy.

    Raises:
        OSError: it cannot be written, or is a link, a pipe, a folder or a device.
    """
    with suppress(FileNotFoundError):
        with open_file(file) as known:
            content = known.read() if os.fstat(known.fileno()).st_nlink > 1 else None
        if content is not None:
            write_atomically(file, content)
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _PLAIN, 0o666)
    with os.fdopen(descriptor, "ab") as stream:
        stream.write(f"{line}\n".encode())
        stream.flush()
        os.fsync(stream.fileno())


def make_folder(folder: Path) -> None:
    """The folder and its parents, each entered durably into its own parent."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)


def checksum(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def file_checksum(stream: BufferedReader) -> str:
    """``checksum`` of what an open file holds."""
    return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def cannot_write(path: Path, error: OSError) -> RunError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return RunError(
        f"{str(path)!r} cannot be written ({error.strerror or error}). {'Free space or choose' if full else 'Choose'} "
        "another folder with -o."
    )
