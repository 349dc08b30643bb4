"""Files that are complete once they exist, and whose names say what is in them.

Only what is a file or a folder of its own counts: a part of a run that is a link, a pipe or a device is refused by name,
before it is read, replaced or removed. The way to the run may lead over links.

A shard is called ``STEM-HASH.EXT`` where HASH is the first 16 hex digits of its content's SHA-256. It appears under that
name in one step, so a process that dies at any moment leaves whole shards only, and one that was cut off or altered
afterwards no longer matches its name.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from headcount.errors import RunError
from headcount.files import (
    append_line,
    cannot_write,
    checksum,
    file_checksum,
    kind,
    open_file,
    read_file,
    write_atomically,
)

_SHARD = re.compile(r"(?P<stem>\d{6,12}(-[A-Za-z0-9_-]+)?)-(?P<checksum>[0-9a-f]{16})\.(safetensors|parquet)")
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.([0-9a-f]{16}|\d{1,10})\.part")  # the latter: of older headcounts
#: A shard within its run.
NOTED = re.compile(rf"(scores|summaries|outcomes)/{_SHARD.pattern}")
#: Gets a line for each shard that is written, and goes when a manifest lists them.
WRITTEN = "written.txt"
#: What lies in the folder of a run or study. Whatever else lies there is somebody else's.
_FILES = (
    "run.json", "study.json", "metrics.parquet", WRITTEN, "history.jsonl", ".lock", ".holder.json", "report.html",
)  # fmt: skip
_FOLDERS = ("scores", "summaries", "outcomes", "tables", "runs", "export", "figures")
_WITHIN = ("scores", "summaries", "outcomes", "tables", "runs")


class Shard(NamedTuple):
    path: Path
    stem: str
    checksum: str

    @classmethod
    def of(cls, path: Path) -> "Shard":
        """Of a file that is named as a shard."""
        shard = as_shard(path)
        assert shard is not None
        return shard


def check_parts(folder: Path) -> None:
    """Raise RunError if a part of a run or study is not the file or folder that headcount makes, or cannot be read."""
    try:
        for names, wanted in ((_FILES, "file"), (_FOLDERS, "folder")):
            for name in names:
                if kind(folder / name) not in (None, wanted):
                    raise _no(wanted, folder / name)
        for name in _WITHIN:
            entries: list[os.DirEntry[str]] = []
            if kind(folder / name):
                with os.scandir(folder / name) as found:
                    entries = list(found)
            for entry in entries:
                own = name != "runs" and (_SHARD.fullmatch(entry.name) or _TEMPORARY.fullmatch(entry.name))
                if not entry.is_file(follow_symlinks=False) and (own or not entry.is_dir(follow_symlinks=False)):
                    raise _no("folder" if name == "runs" else "file", Path(entry.path))
        for path in (folder / "runs").glob("*/*"):
            if kind(path) not in ("folder", "file"):
                raise _no("folder", path)
    except OSError as error:
        raise RunError(f"{str(folder)!r} cannot be read ({error.strerror or error}).") from error


def _no(wanted: str, path: Path) -> RunError:
    return RunError(
        f"{str(path)!r} is a {kind(path)}, and headcount keeps a {wanted} of its own there. Nothing was read or written. "
        "Put the real one in its place, or move it away."
    )


def write_shard(folder: Path, stem: str, extension: str, content: bytes) -> Path:
    """Write a shard, and note it in the run. An older one with the same stem goes once the new one is there."""
    file = folder / f"{stem}-{checksum(content)}.{extension}"
    write_atomically(file, content)
    name = f"{folder.name}/{file.name}"
    try:
        append_line(folder.parent / WRITTEN, f"{checksum(name.encode())} {name}")
    except OSError as error:
        raise cannot_write(folder.parent / WRITTEN, error) from error
    for other in every_shard(folder):
        if other.stem == stem and other.path != file:
            other.path.unlink(missing_ok=True)
    return file


def written(run: Path) -> list[str]:
    """The shards noted since the manifest was written, as FOLDER/NAME; a line that was cut off is left out.

    Raises:
        Damaged: the list was altered.
    """
    file = run / WRITTEN
    try:
        lines = read_file(file).decode(errors="replace").split("\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise damaged(file, str(error)) from error
    names = []
    for known, _, name in (line.partition(" ") for line in lines[:-1]):
        if checksum(name.encode()) != known or not NOTED.fullmatch(name):
            raise damaged(file, "a line differs from its checksum")
        names.append(name)
    return names


def shards(folder: Path) -> list[Shard]:
    """The shards of a folder by name; the first by checksum where two have one stem."""
    found: dict[str, Shard] = {}
    for shard in every_shard(folder):
        found.setdefault(shard.stem, shard)
    return list(found.values())


def every_shard(folder: Path) -> Iterator[Shard]:
    """Also those that another one of the same stem stands in for."""
    for path in sorted(folder.iterdir()) if kind(folder) == "folder" else ():
        if (shard := as_shard(path)) is not None:
            yield shard


def as_shard(path: Path) -> Shard | None:
    """What a file's name says; None if headcount does not name its shards so."""
    match = _SHARD.fullmatch(path.name)
    return match and Shard(path, match["stem"], match["checksum"])


def is_whole(shard: Shard) -> bool:
    """Whether the shard's content is the one its name promises."""
    try:
        with open_file(shard.path) as stream:
            return file_checksum(stream) == shard.checksum
    except OSError:
        return False


def read_shard(shard: Shard) -> bytes:
    """A shard's content. Raises RunError if it cannot be read, or is not what was written."""
    try:
        content = read_file(shard.path)
    except OSError as error:
        raise damaged(shard.path, str(error)) from error
    if checksum(content) != shard.checksum:
        raise damaged(shard.path, "its checksum differs from the one in its name")
    return content


def leftovers(folder: Path, name: str | None = None) -> Iterator[Path]:
    """Temporary files, for files called ``name`` or all, of writers that died."""
    for path in folder.iterdir() if kind(folder) == "folder" else ():
        match = _TEMPORARY.fullmatch(path.name)
        if match and name in (None, match["name"]) and kind(path) == "file":
            yield path


class Damaged(RunError):
    """A file that is not what headcount wrote, or is gone."""


def damaged(file: Path, why: str) -> Damaged:
    return Damaged(
        f"{str(file)!r} is not what was written ({why}). Give the command that made the run again: it makes this part anew."
    )
