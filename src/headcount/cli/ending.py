"""How a command ends: its exit code, and one sentence where something went wrong."""

import errno
import io
import logging
import os
import shlex
import sys
import tempfile
import traceback
import warnings
from contextlib import suppress

from rich.text import Text

from headcount.cli.app import add_commands, app
from headcount.cli.console import PlainRecord, errors, show_warning
from headcount.errors import HeadcountError

#: Failures of files that a user can do something about.
_USERS = (
    errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR,
)  # fmt: skip


def run() -> int:
    """Run the command that was given; its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # not every terminal has a –
    warnings.showwarning = show_warning
    logging.setLogRecordFactory(PlainRecord)
    try:
        add_commands()
        code = _exit_code()
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a full disk can still be said
        return code
    except HeadcountError as error:
        return _stopped(str(error))
    except BrokenPipeError:  # who read the output wants no more of it
        _drop_output()
        return 1
    except OSError as error:
        if (why := _users(error)) is None:
            return _bug(error)
        _drop_output()
        return _stopped(why)
    except Exception as error:
        return _bug(error)


def _exit_code() -> int:
    try:
        app()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def _users(error: OSError) -> str | None:
    """What a user can do about it; None if nothing."""
    try:
        os.getcwd()
    except OSError:
        return "The folder that this was started in is gone. Go to one that exists."
    if error.errno not in _USERS:
        return None
    if error.filename is None:
        return f"The output cannot be written: {error.strerror}. Make room, or send it elsewhere."
    return f"{str(error.filename)!r} cannot be used: {error.strerror}. Choose another file or folder."


def _stopped(why: str, code: int = 2) -> int:
    with suppress(OSError):
        errors.say(" ".join(why.split()), heading=Text("Error: ", style="bold red"))
    return code


def _bug(error: Exception) -> int:
    """Keep the traceback of what must not happen where it can be read and reported."""
    told = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="headcount-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(f"headcount {shlex.join(sys.argv[1:])}\n\n{told}")
        kept = f"the file {file.name} holds its traceback"
    except OSError:
        sys.stderr.write(told)
        kept = "above is its traceback"
    said = f"{type(error).__name__}: {error}".strip(": ")
    return _stopped(f"This is a bug of headcount ({said:.300}); {kept}. Please report it.", 1)


def _drop_output() -> None:
    """What Python still holds for an output that cannot be written must not fail again when it exits."""
    with suppress(OSError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
