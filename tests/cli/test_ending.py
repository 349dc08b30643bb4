"""How commands end that something goes wrong in."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from headcount.cli import main, published
from headcount.errors import RunError


def shell(line, **environment):
    """Exit code, standard output and standard error of a shell's line, in which $HEADCOUNT is the command."""
    program = f"{sys.executable} -c 'from headcount.cli import main; main()'"
    ended = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line.replace("$HEADCOUNT", program)],
        env=os.environ | {"PYTHONPATH": str(Path(main.__code__.co_filename).parents[2])} | environment,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return ended.returncode, ended.stdout, ended.stderr


def test_output_that_cannot_be_written_is_a_sentence():
    said = "Error: The output cannot be written: No space left on device. Make room, or send it elsewhere.\n"
    assert shell("$HEADCOUNT --help > /dev/full") == (2, "", said)
    assert shell("$HEADCOUNT --version > /dev/full") == (2, "", said)  # small enough to be written only at the end
    assert shell("$HEADCOUNT --version >&- <&-")[0] == 0


def test_a_reader_who_has_enough_ends_a_command_quietly():
    code, out, error = shell("$HEADCOUNT --help | true")
    assert (code, out, error) == (1, "", "")


def test_terminals_without_the_signs_or_of_no_width():
    code, out, error = shell("$HEADCOUNT scores", PYTHONIOENCODING="ascii", COLUMNS="0", TERM="dumb")
    assert (code, error) == (0, "")
    assert "ahon_ln" in out


def test_a_folder_that_is_gone():
    assert shell("mkdir gone && cd gone && rmdir ../gone && $HEADCOUNT analyse x")[:2] == (2, "")


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_imports(sign, code):
    """As it arrives while the first command is imported, which takes seconds."""
    program = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # whoever started the tests may ignore it
        "from headcount.cli import main\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == 'headcount.cli.analyse': os.kill(os.getpid(), {int(sign)})\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "main()\n"
    )
    code_, out, error = shell(f'{sys.executable} -c "{program}"')
    assert (code_, out) == (code, "")
    assert error == ("Stopped.\n" if sign == signal.SIGINT else "")


def test_ctrl_c_and_a_kill_say_what_is_kept(headcount, checkpoint, text, monkeypatch):
    command = "measure", checkpoint(), "--texts", text
    for stop, code in ((KeyboardInterrupt(), 130), (SystemExit(143), 143)):

        def stopped(*_, stop=stop, **__):
            raise stop

        monkeypatch.setattr("headcount.study.units.measure_heads", stopped)
        ended, _, error = headcount(*command, "-o", "run")
        assert ended == code
        assert "Stopped. What was finished is kept in 'run'; the same command goes on from there." in error
        folder = re.search(r"kept in '(runs/model-text-[\d-]+)'", headcount(*command)[2])
        assert folder is not None
        assert Path(folder[1], "run.json").exists()
    monkeypatch.setattr("headcount.study.subject.load", stopped)
    assert "Stopped. Nothing was written." in headcount(*command)[2]


def test_a_bug_is_one_line_and_its_traceback_is_kept(headcount, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(published, "output", None)
    code, out, error = headcount("published", "-m", "OLMo-2-1124-7B")
    assert (code, out) == (1, "")
    assert re.fullmatch(
        r"Error: This is a bug of headcount \(AttributeError: .*\); the file (\S+) holds its .*\n", error
    )
    kept = Path(error.split("the file ")[1].split()[0]).read_text(encoding="utf-8")
    assert kept.startswith("headcount published -m OLMo-2-1124-7B\n\nTraceback")
    assert "AttributeError" in kept.splitlines()[-1]


@pytest.mark.parametrize("option", [("published", "-o"), ("measure", "demo", "-o"), ("report", "run", "--output"),
                                    ("evaluate", "demo", "--thresholds-from"), ("scores", "--scores-from")])  # fmt: skip
def test_an_empty_name_of_a_file(refused, option):
    assert "'' is no name of a file or folder." in refused(*option, "")


@pytest.mark.parametrize("name", ["folder", "file/below", "x" * 300])
def test_names_that_cannot_be_written(refused, name):
    Path("folder").mkdir()
    Path("file").touch()
    assert "cannot be written" in refused("published", "-o", name)


def test_parents_that_are_missing_are_made(headcount):
    assert headcount("published", "-o", "new/folder/table.csv")[0] == 0
    assert Path("new/folder/table.csv").exists()


def test_an_error_of_headcounts_own_is_exit_code_2(headcount, monkeypatch):
    def fails(*_):
        raise RunError("Two\nlines [bold]of[/] text.")

    monkeypatch.setattr("headcount.published.published_model", fails)
    code, _, error = headcount("published", "-m", "x")
    assert (code, error) == (2, "Error: Two lines [bold]of[/] text.\n")
