"""Files are written whole, or not at all."""

import errno
import os
import re
from pathlib import Path

import pytest
import xarray as xr

from headcount.errors import RunError
from headcount.files import cannot_write
from headcount.store import open_run, write_atomically
from tests.store.parts import table


def full_disk(monkeypatch, name):
    """Writing out a file whose name begins so fails at the last moment, as on a full disk."""
    replace = Path.replace

    def fail(self, target):
        if Path(target).name.startswith(name):
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / "page.html"
    write_atomically(file, b"old")

    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunError, match=r"page.html.*No space left on device.*Free space"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]


def test_file_and_folder_are_synced_before_a_write_counts_as_done(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, Path.replace

    def sync(descriptor):
        done.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", lambda self, to: done.append(("rename", to.name)) or replace(self, to))
    write_atomically(tmp_path / "new/page.html", b"x")
    part = done[1][1]
    assert re.fullmatch(r"\.page\.html\.[0-9a-f]{16}\.part", part)
    assert done == [("sync", tmp_path.name), ("sync", part), ("rename", "page.html"), ("sync", "new")]


def test_a_failed_shard_leaves_the_run_readable(run, monkeypatch):
    whole = table(4)
    run.add_scores(0, whole.isel(example=[0, 1]))
    full_disk(monkeypatch, "000001-")
    with pytest.raises(RunError, match=r"No space"):
        run.add_scores(1, whole.isel(example=[2, 3]))
    monkeypatch.undo()
    assert [file for file in run.path.rglob("*") if file.suffix == ".part"] == []
    again = open_run(run.path)
    again.add_scores(1, whole.isel(example=[2, 3]))
    xr.testing.assert_identical(open_run(run.path).scores().load(), whole)


def test_failing_to_replace_thresholds_keeps_the_old_ones(run, monkeypatch):
    first = xr.Dataset({"awft": ("share", [0.1])}, coords={"share": [0.1]})
    run.set_thresholds(first)
    full_disk(monkeypatch, "run.json")
    with pytest.raises(RunError, match=r"No space"):
        run.set_thresholds(first * 2)
    monkeypatch.undo()
    xr.testing.assert_identical(run.thresholds(), first)
    xr.testing.assert_identical(open_run(run.path).thresholds(), first)


def test_only_a_full_disk_asks_for_space():
    of = {
        code: str(cannot_write(Path("here"), OSError(code, os.strerror(code)))) for code in (errno.ENOSPC, errno.EACCES)
    }
    assert of[errno.ENOSPC].endswith("(No space left on device). Free space or choose another folder with -o.")
    assert of[errno.EACCES].endswith("(Permission denied). Choose another folder with -o.")
