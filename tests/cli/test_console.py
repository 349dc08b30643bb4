"""What strangers named cannot steer the terminal it is shown on."""

import logging
import re
import unicodedata
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from headcount.cli.console import PlainConsole, PlainRecord, show_warning, steps, visible
from headcount.store import open_run

HOSTILE = "\x1b]0;pwn\x07\x1b[31m\x9b2J\u202egnp\u2066\u200f[red][/] :bomb:\rx\nError: forged\u2028Note: forged"
SHOWN = r"\x1b]0;pwn\x07\x1b[31m\x9b2J\u202egnp\u2066\u200f[red][/] :bomb:\rx\nError: forged\u2028Note: forged"
HARMLESS = "ünï 模型 שלום مرحبا नमस्ते می‌خواهم 👩‍💻 [95%] :warning: a_b"


def steers(text: str) -> bool:
    """Whether anything in it but line ends and the spaces of tables does more than be seen."""
    return any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in "\n\u200c\u200d" for c in text)


@given(st.text(st.characters(exclude_categories=())))
def test_nothing_steers_in_visible_text(text):
    assert not steers(visible(text))
    assert "\n" not in visible(text)


def test_ordinary_names_are_shown_as_they_are():
    assert visible(HARMLESS) == HARMLESS


def test_a_line_stays_one_line(capsys):
    PlainConsole().say(f"Run: {HOSTILE}")
    assert capsys.readouterr().out == f"Run: {SHOWN}\n"


def test_a_cell_and_a_heading_are_text_alone(capsys):
    table = Table(box=None, title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    PlainConsole().print(table, HOSTILE)
    printed = capsys.readouterr().out
    assert not steers(printed.replace("\t", ""))
    assert "[red][/] :bomb:" in "".join(printed.split("\n")).replace(" ", "").replace(":bomb:", " :bomb:")


def test_a_warning_is_one_line(capsys):
    show_warning(UserWarning(HOSTILE), UserWarning, "file.py", 1)
    said = capsys.readouterr().err
    assert re.fullmatch("Note: .*\n", said)
    assert not steers(said)


def test_a_step_of_progress_is_text_alone(capsys):
    with steps() as progress:
        progress.start(f"[red]{HOSTILE}", 1)(1, 1)
    said = capsys.readouterr().err
    assert "[red]\\x1b]0;pwn" in said.replace("\n", "")
    assert not re.search(r"\x1b\]0|\u202e|^Error:", said, re.MULTILINE)


def test_what_libraries_log_is_one_line():
    record = PlainRecord("library", logging.WARNING, "file.py", 1, "read %s", (HOSTILE,), None)
    assert record.getMessage() == f"read {SHOWN}"


@pytest.fixture
def hostile_run(headcount, checkpoint, text):
    """A measured run whose manifest was written by somebody else."""
    assert headcount("measure", checkpoint(), "--texts", text, "-o", "run")[0] == 0
    run = open_run("run")
    model, settings = run.manifest.model.facts() | {"name": HOSTILE}, run.settings.facts() | {HOSTILE: HOSTILE}
    run.update(model=model, settings=settings, data=run.manifest.data.facts() | {"texts": [HOSTILE]}, created=HOSTILE)


@pytest.mark.parametrize(
    "command", [["status", "run"], ["analyse", "run"], ["thresholds", "run"], ["report", "run"], ["export", "run"]]
)
def test_no_command_passes_on_what_a_manifest_says(headcount, hostile_run, command):
    with warnings.catch_warnings():
        code, out, err = headcount(*command)
    assert code == 0
    assert not steers(out + err)
    assert not re.search(r"^\s*(Error|Note): forged", out + err, re.MULTILINE)
