"""A command line to run, and tiny models and tasks for it to run on."""

import functools
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import typer.main

from headcount import cli
from tests.cli.finished import make_run, make_study
from tests.runs import write_tasks

#: The commands are made once: making them takes longer than most of them.
_COMMANDS = functools.cache(typer.main.get_command)


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """A folder of its own to work in, and nothing left behind by a command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("typer.main.get_command", _COMMANDS)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # as a command sets it, for itself alone
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read from the environment on import alone


@pytest.fixture
def headcount(monkeypatch, capsys):
    """Runs a command line; gives the exit code, standard output and standard error."""

    def headcount(*arguments):
        monkeypatch.setattr(sys, "argv", ["headcount", *map(str, arguments)])
        with warnings.catch_warnings():
            warnings.filterwarnings("always", category=UserWarning, module=r"headcount\.")  # shown as notes
            with pytest.raises(SystemExit) as stop:
                cli.main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return headcount


@pytest.fixture
def refused(headcount):
    """Runs a command line that must end with one error line, exit code 2 and no traceback; gives that line."""

    def refused(*arguments):
        code, _, error = headcount(*arguments)
        assert code == 2, error
        lines = [line for line in error.splitlines() if line.startswith("Error:")]
        assert len(lines) == 1, error
        assert error.rstrip().endswith(lines[0])
        assert "Traceback" not in error
        return lines[0]

    return refused


@pytest.fixture
def checkpoint(tiny, letters, tmp_path):
    """The folder of a tiny Llama's checkpoint; ``checkpoint("other", seed=1)`` of another."""

    def checkpoint(name="model", **changes):
        folder = tmp_path / name
        if not folder.exists():
            tiny(**changes).save_pretrained(folder)
            letters.save_pretrained(folder)
        return folder

    return checkpoint


@pytest.fixture
def own(tmp_path):
    """The options for a task of our own with six questions; ``own("spell")`` for one that generates."""
    folder = tmp_path / "tasks"
    write_tasks(folder, 6)

    def own(task="sums"):
        return "--task", task, "--include-path", folder, "--offline"

    return own


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("How many of your model's attention heads actually work?")
    return file


@pytest.fixture
def small_shards(monkeypatch):
    """Inputs and questions are written two at a time."""
    monkeypatch.setattr("headcount.store.manifest.SHARD", 2)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A run and a study, made without a model."""
    folder = tmp_path_factory.mktemp("finished")
    make_run(folder / "run")
    make_study(folder / "study")
    return folder


@pytest.fixture
def outside(tmp_path):
    """A folder that is somebody else's."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/diary.txt").write_text("dear")


@pytest.fixture
def run(finished, tmp_path, outside):
    """A copy of the finished run, beside a folder that is somebody else's."""
    return Path(shutil.copytree(finished / "run", tmp_path / "run"))


@pytest.fixture
def study(finished, tmp_path, outside):
    """A copy of the finished study, beside a folder that is somebody else's."""
    return Path(shutil.copytree(finished / "study", tmp_path / "study"))


@pytest.fixture
def look(headcount):
    """Runs a command that only looks; it may refuse, in one sentence."""

    def look(command, *arguments, of="run"):
        code, out, error = headcount(command, of, *arguments)
        assert code in (0, 1, 2)
        assert "Traceback" not in out + error
        assert (code == 2) == ("Error: " in error)
        return code, out + error

    return look
