"""Results of several files appear whole, or not at all."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from headcount.errors import InputError, RunError
from headcount.store.whole import check_writable, files_together, new_folder

not_root = pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def fill(folder, *, made_by=files_together, **files):
    with made_by(folder) as work:
        for name, content in files.items():
            (work / name).write_text(content)


@pytest.mark.parametrize("made_by", [new_folder, files_together])
def test_nothing_is_there_before_the_end_and_all_of_it_afterwards(made_by, tmp_path):
    before = os.umask(0o027)
    try:
        with made_by(tmp_path / "deep/new") as work:
            (work / "a").write_text("1")
            assert [path.name.startswith(".new.making-") for path in (tmp_path / "deep").iterdir()] == [True]
    finally:
        os.umask(before)
    assert names(tmp_path) == ["deep", "deep/new", "deep/new/a"]
    assert (tmp_path / "deep/new").stat().st_mode & 0o777 == 0o750  # of the umask, not of what was hidden


@pytest.mark.parametrize("made_by", [new_folder, files_together])
def test_a_failure_leaves_nothing_not_even_the_folders_above(made_by, tmp_path):
    def fail():
        with made_by(tmp_path / "deep/new") as work:
            (work / "a").write_text("1")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunError, match="deep/new' cannot be written .No space left on device.. Free space or choose"):
        fail()
    assert names(tmp_path) == []


def test_what_libraries_in_rust_say_of_a_full_disk_is_the_same_sentence(tmp_path):
    def fail():
        with new_folder(tmp_path / "new"):
            raise Exception("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(RunError, match="new' cannot be written .No space left on device"):
        fail()


@pytest.mark.parametrize("made_by", [new_folder, files_together])
def test_everything_is_synced_before_it_gets_its_name(made_by, tmp_path, monkeypatch):
    done, fsync, rename = [], os.fsync, Path.rename

    def sync(descriptor):
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "rename", lambda self, to: done.append(f"-> {to.name}") or rename(self, to))
    fill(tmp_path / "new", made_by=made_by, a="1")
    assert done == ["a", "new", "-> new", tmp_path.name]


def test_files_are_added_to_what_is_there(tmp_path):
    folder = tmp_path / "tables"
    fill(folder, a="old", b="kept")
    (folder / "notes").mkdir()
    fill(folder, a="new", c="new")
    assert {name: (folder / name).read_text() for name in "abc"} == {"a": "new", "b": "kept", "c": "new"}
    assert names(folder) == ["a", "b", "c", "notes"]


def test_a_failure_keeps_every_old_file(tmp_path):
    folder = tmp_path / "tables"
    fill(folder, a="old", b="old")

    def fail():
        with files_together(folder) as work:
            (work / "a").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert {name: (folder / name).read_text() for name in names(folder)} == {"a": "old", "b": "old"}


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_what_is_no_file_is_not_replaced_and_nothing_else_is_either(kind, tmp_path):
    folder = tmp_path / "tables"
    fill(folder, a="old")
    make = {"folder": Path.mkdir, "link": lambda path: path.symlink_to(folder / "a"), "pipe": os.mkfifo}[kind]
    make(folder / "b")
    with pytest.raises(RunError, match="tables' cannot be written .'b' there is no file"):
        fill(folder, a="new", b="new")
    assert names(folder) == ["a", "b"]
    assert (folder / "a").read_text() == "old"


def test_two_at_once_do_not_mix(tmp_path):
    with files_together(tmp_path / "tables") as work:
        (work / "a").write_text("1")
        (work / "b").write_text("1")
        fill(tmp_path / "tables", a="2", b="2")
    assert {name: (tmp_path / "tables" / name).read_text() for name in names(tmp_path / "tables")} == {
        "a": "1",
        "b": "1",
    }

    def second():
        with new_folder(tmp_path / "new") as work:
            (work / "a").write_text("1")
            fill(tmp_path / "new", made_by=new_folder, a="2")

    with pytest.raises(InputError, match="new' exists already"):
        second()
    assert (tmp_path / "new/a").read_text() == "2"
    assert names(tmp_path) == ["new", "new/a", "tables", "tables/a", "tables/b"]


@pytest.mark.parametrize("kind", ["file", "full", "link", "link to an empty folder", "dangling link"])
def test_a_new_folder_takes_nobodys_place(kind, tmp_path):
    target, other = tmp_path / "target", tmp_path / "other"
    other.mkdir()
    if kind == "file":
        target.write_text("")
    elif kind == "full":
        fill(target, a="1")
    else:
        target.symlink_to({"link": tmp_path, "dangling link": tmp_path / "none"}.get(kind, other))
    with pytest.raises(InputError, match=f"target' {'exists already' if 'link' not in kind else 'is a link'}"):
        fill(target, made_by=new_folder)
    assert names(other) == []


def test_an_empty_folder_is_nothing(tmp_path):
    fill(tmp_path, made_by=new_folder, a="1")
    assert names(tmp_path) == ["a"]


def test_a_file_system_of_its_own_cannot_be_replaced_but_added_to(tmp_path, monkeypatch):
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path) == tmp_path)
    with pytest.raises(InputError, match="is a file system of its own"):
        fill(tmp_path, made_by=new_folder)
    fill(tmp_path, a="1")
    assert names(tmp_path) == ["a"]


def test_whether_it_can_be_written_is_known_at_once(tmp_path):
    check_writable(tmp_path / "deep/new")
    check_writable(tmp_path)
    assert names(tmp_path) == []
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file/new", tmp_path / ("x" * 256)):
        with pytest.raises(RunError, match="cannot be written"):
            check_writable(path)
    with pytest.raises(RunError, match="cannot be written .it is no folder"):
        fill(tmp_path / "file")


@not_root
def test_a_folder_that_only_others_can_write(tmp_path):
    tmp_path.chmod(0o500)
    for check in (check_writable, fill):
        with pytest.raises(RunError, match="Permission denied"):
            check(tmp_path / "new")


@pytest.mark.parametrize("made", ["before", "after", "never"])
def test_what_a_killed_process_left_is_cleared_wherever_it_lies(made, tmp_path):
    code = (
        "import os, signal; from headcount.store.whole import files_together; from pathlib import Path\n"
        f"with files_together(Path({str(tmp_path / 'tables')!r})): os.kill(os.getpid(), signal.SIGKILL)"
    )
    if made == "before":
        (tmp_path / "tables").mkdir()
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode < 0
    (left,) = tmp_path.rglob(".tables.making-*")
    if made == "after":
        (tmp_path / "tables").mkdir()
    with pytest.warns(UserWarning, match=f"Cleared '{left}', left over by a process that was killed") as said:
        fill(tmp_path / "tables", a="1")
    assert len(said) == 1
    assert names(tmp_path) == ["tables", "tables/a"]
