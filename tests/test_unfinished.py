"""Hidden folders: gone when their maker ends, and found when it was killed."""

import os
import signal
import subprocess
import sys

import pytest

from headcount.unfinished import clear_leftovers, unfinished

MAKER = """
import sys, time
from pathlib import Path
from headcount.unfinished import unfinished
with unfinished(Path(sys.argv[1]), "x") as work:
    (work / "half").write_text("half")
    print(work, flush=True)
    time.sleep(60)
"""


def maker(folder):
    process = subprocess.Popen([sys.executable, "-c", MAKER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_it_is_this_users_alone_and_gone_whatever_happens(tmp_path):
    def fail(name):
        with unfinished(tmp_path, name) as work:
            assert work.parent == tmp_path
            assert work.name.startswith(f".{name}.making-")
            assert work.stat().st_mode & 0o777 == 0o700
            raise KeyError

    umask = os.umask(0o002)
    try:
        with pytest.raises(KeyError):
            fail("a [b]*")
    finally:
        os.umask(umask)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_the_dead_are_named_and_cleared_and_those_of_the_living_are_not(tmp_path):
    dead, left = maker(tmp_path)
    with unfinished(tmp_path, "y"):  # somebody who makes something else
        assert len(list(tmp_path.iterdir())) == 2
    with unfinished(tmp_path, "x"):  # and somebody who makes the same beside it
        assert os.path.exists(left)
    dead.send_signal(signal.SIGKILL)
    dead.communicate()
    with pytest.warns(UserWarning, match=f"Cleared '{left}', left over by a process that was killed"):
        clear_leftovers(tmp_path, "x")
    assert list(tmp_path.iterdir()) == []


def test_what_only_looks_like_one_is_left_alone(tmp_path):
    notes, link, file = (tmp_path / f".x.making-{name}" for name in ("notes", "link", "file"))
    notes.mkdir()
    (notes / "mine").write_text("precious")
    link.symlink_to(notes)
    file.write_text("")
    with unfinished(tmp_path, "x"):
        pass
    assert (notes / "mine").read_text() == "precious"
    assert {link, file, notes} == set(tmp_path.iterdir())


def test_a_folder_taken_for_a_leftover_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    mkdtemp = __import__("tempfile").mkdtemp
    made = []

    def swept(**given):
        made.append(mkdtemp(**given))
        if len(made) == 1:
            with pytest.warns(UserWarning, match="Cleared"):
                clear_leftovers(tmp_path, "x")
        return made[-1]

    monkeypatch.setattr("tempfile.mkdtemp", swept)
    with unfinished(tmp_path, "x") as work:
        assert str(work) == made[1]
