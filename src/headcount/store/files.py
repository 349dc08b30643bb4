"""Files that are complete once they exist, and whose names say what is in them.

A shard is called ``STEM-HASH.EXT`` where HASH is the first 16 hex digits of its content's SHA-256. It appears under that
name in one step, so a process that dies at any moment leaves whole shards only, and one that was cut off or altered
afterwards no longer matches its name.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from headcount.errors import RunError

_SHARD = re.compile(r"(?P<stem>.+)-(?P<checksum>[0-9a-f]{16})\.[a-z]+")


class Shard(NamedTuple):
    path: Path
    stem: str
    checksum: str


def write_atomically(file: Path, content: bytes) -> None:
    """Write so that the file is either absent, or its old self, or complete, whatever happens meanwhile.

    Temporary file, fsync, rename, fsync of the folder.

    Raises:
        RunError: it cannot be written.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        make_folder(file.parent)
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
        _sync_folder(file.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise cannot_write(file, error) from error


def make_folder(folder: Path) -> None:
    """The folder and its parents, each entered durably into its own parent."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        _sync_folder(path.parent)


def write_shard(folder: Path, stem: str, extension: str, content: bytes) -> Path:
    """Write a shard. An older one with the same stem goes once the new one is there."""
    file = folder / f"{stem}-{checksum(content)}.{extension}"
    write_atomically(file, content)
    for other in _every_shard(folder):
        if other.stem == stem and other.path != file:
            other.path.unlink(missing_ok=True)
    return file


def shards(folder: Path) -> list[Shard]:
    """The shards of a folder by name; the first by checksum where two have one stem."""
    found: dict[str, Shard] = {}
    for shard in _every_shard(folder):
        found.setdefault(shard.stem, shard)
    return list(found.values())


def _every_shard(folder: Path) -> Iterator[Shard]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if match := _SHARD.fullmatch(path.name):
            yield Shard(path, match["stem"], match["checksum"])


def checksum(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def is_whole(shard: Shard) -> bool:
    """Whether the shard's content is the one its name promises."""
    try:
        with shard.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:16] == shard.checksum
    except OSError:
        return False


def read_shard(shard: Shard) -> bytes:
    """A shard's content. Raises RunError if it cannot be read, or is not what was written."""
    try:
        content = shard.path.read_bytes()
    except OSError as error:
        raise damaged(shard.path, str(error)) from error
    if checksum(content) != shard.checksum:
        raise damaged(shard.path, "its checksum differs from the one in its name")
    return content


def leftovers(folder: Path, name: str = "*") -> Iterator[Path]:
    """Temporary files, for files called ``name``, of writers that died."""
    yield from folder.glob(f".{name}.*.part")


def damaged(file: Path, why: str) -> RunError:
    return RunError(
        f"{str(file)!r} is not what was written ({why}). Give the command that made the run again: it makes this part anew."
    )


def cannot_write(path: Path, error: OSError) -> RunError:
    return RunError(
        f"{str(path)!r} cannot be written ({error.strerror or error}). Free space or choose another folder with -o."
    )


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # only there can a folder be opened, and has to be
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
